"""What a prefill step is told, in memory that goes to the device in one copy.

Letters: R requests that there may be, T tokens that there may be, G segments, P pages.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a step is told: the host writes one of these, the device reads another."""

    memory: Tensor
    """int32, all that follows, to be copied in one go."""
    seed: Tensor
    """(R,) int64."""
    drawn: Tensor
    """(R,) int64, tokens that each request has drawn."""
    temperature: Tensor
    """(R,) float32; 0 is greedy."""
    token: Tensor
    """(R,) what the step draws: nothing that it is told."""
    ids: Tensor
    """(T,)."""
    request: Tensor
    """(T,) each token's."""
    position: Tensor
    """(T,) its place there."""
    room: Tensor
    """(T,) streams that its length may have beyond one a token."""
    first: Tensor
    """(R,) the first token of each request among the T."""
    last: Tensor
    """(R,) its last."""
    count: Tensor
    """(R,) how many; 0 where no request is."""
    length: Tensor
    """(R,) how many it then has."""
    held: Tensor
    """(G,R) streams that it has so far."""
    table: Tensor
    """(R,ΣP) its pages, in stream order, of one segment after the other."""
    live: Tensor
    """(1,) tokens of all."""

    @classmethod
    def zeros(cls, tokens: int, places: int, segments: int, pages: int, device: torch.device) -> Self:
        """For so many of each."""
        sizes = [
            2 * places,
            2 * places,
            *[places] * 2,
            *[tokens] * 4,
            *[places] * 4,
            places * segments,
            places * pages,
            1,
        ]
        pinned = device.type == "cpu" and torch.cuda.is_available()
        memory = torch.zeros(sum(sizes), dtype=torch.int32, device=device, pin_memory=pinned)
        seed, drawn, temperature, token, *vectors, held, table, live = memory.split(sizes)
        ids, request, position, room, first, last, count, length = vectors
        return cls(
            memory, seed.view(torch.int64), drawn.view(torch.int64), temperature.view(torch.float32), token,
            ids, request, position, room, first, last, count, length,
            held.view(segments, places), table.view(places, pages), live,
        )  # fmt: skip

    def numpy(self) -> dict[str, NDArray[Any]]:
        """The fields by name, on the host."""
        return {field.name: getattr(self, field.name).numpy() for field in fields(self)}
