"""What a step reads of its requests, in one block of int32 that the host writes at once.

Letters: L lanes, B batch slots of a prefill step, T tokens of a prefill step, G segments, P pages of a request.
"""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Self, get_type_hints

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """Tensors that lie end to end in one block of memory; subclasses declare each with its shape, in letters."""

    memory: Tensor
    """int32, all columns."""

    @classmethod
    def zeros(cls, device: torch.device, **sizes: int) -> Self:
        """Return columns of zeros; `sizes` gives the number that each letter stands for."""
        shapes = {name: [sizes.get(letter, letter) for letter in letters] for name, letters in cls._letters().items()}
        lengths = [prod(shape) for shape in shapes.values()]
        pinned = device.type == "cpu" and torch.cuda.is_available()
        memory = torch.zeros(sum(lengths), dtype=torch.int32, device=device, pin_memory=pinned)
        parts = zip(shapes.items(), memory.split(lengths), strict=True)
        return cls(memory=memory, **{name: part.view(shape) for (name, shape), part in parts})

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Return the columns by name, as arrays that share memory with them; they are on the host."""
        return {name: getattr(self, name).numpy() for name in self._letters()}

    @classmethod
    def _letters(cls) -> dict[str, tuple[Any, ...]]:
        hints = get_type_hints(cls, include_extras=True).items()
        return {name: hint.__metadata__ for name, hint in hints if hasattr(hint, "__metadata__")}


@dataclass(frozen=True, eq=False, kw_only=True)
class Lanes(Columns):
    """The running requests, one lane each. A decode step reads its lanes and advances them by one token."""

    tokens: Annotated[Tensor, "L"]
    """(L,) tokens in the cache."""
    kappa: Annotated[Tensor, "L"]
    """(L,) κ of the budget."""
    streams: Annotated[Tensor, "G", "L"]
    """(G,L) streams in the cache."""
    table: Annotated[Tensor, "L", "P"]
    """(L,P) pages in stream order, one segment after the other, as in `Ledger.table`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PrefillInputs(Columns):
    """The requests of one prefill step, one batch slot each, and their new tokens, end to end."""

    lane: Annotated[Tensor, "B"]
    """(B,) the lane that draws for each request; -1 for an empty slot."""
    ids: Annotated[Tensor, "T"]
    """(T,) token ids."""
    request: Annotated[Tensor, "T"]
    """(T,) the batch slot of each token."""
    position: Annotated[Tensor, "T"]
    """(T,) each token's index in its sequence."""
    fork_budget: Annotated[Tensor, "T"]
    """(T,) forks that a sequence which ends with the token may keep: budget(t+1) - (t+1)."""
    first: Annotated[Tensor, "B"]
    """(B,) the index among the T tokens of each request's first one."""
    last: Annotated[Tensor, "B"]
    """(B,) the index of its last one."""
    count: Annotated[Tensor, "B"]
    """(B,) its new tokens; 0 for an empty slot."""
    length: Annotated[Tensor, "B"]
    """(B,) its tokens in the cache, the new ones included."""
    streams: Annotated[Tensor, "G", "B"]
    """(G,B) its streams in the cache before the step."""
    scored: Annotated[Tensor, "T"]
    """(T,) the indices of the tokens after which a prompt's next one is scored."""
    target: Annotated[Tensor, "T"]
    """(T,) the ids of these next ones."""
    top: Annotated[Tensor, "T"]
    """(T,) how many of the likeliest are reported with each."""
    live: Annotated[Tensor, 1]
    """(1,) new tokens of all requests."""
    table: Annotated[Tensor, "B", "P"]
    """(B,P) its pages, as in `Lanes.table`. It is the largest column and the last, so that the rows in use are uploaded
    and not the others."""
