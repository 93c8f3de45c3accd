"""The report of a prompt: log-probabilities and fork counts, compact, since it is kept until the answer is written.

Letters: P tokens of the prompt, K likeliest tokens at each position.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

TopLogprobs = tuple[tuple[int, float], ...]
"""The likeliest tokens at a position and their log-probabilities, best first."""
Scored = tuple[float, TopLogprobs]
"""The log-probability of a token, and the likeliest tokens at its position."""
ForkScores = tuple[tuple[float, ...], ...]
"""For each fork layer, P of each of a token's streams after it: from left to right, the original last."""


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of a prompt's second and later tokens: 4 + 8 · K bytes each.

    As Python objects, which are made when they are read, they take 136 bytes for each of the K.
    """

    own: "array[float]" = field(default_factory=lambda: array("f"))
    """(P-1) of the prompt's tokens."""
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    """((P-1)·K) the likeliest ones."""
    values: "array[float]" = field(default_factory=lambda: array("f"))
    """((P-1)·K) of these."""

    def extend(self, scored: Iterable[Scored]) -> None:
        """Append the next tokens; K is the same for all."""
        for logprob, top in scored:
            self.own.append(logprob)
            self.ids.extend(token_id for token_id, _ in top)
            self.values.extend(value for _, value in top)

    @classmethod
    def of(cls, own: NDArray[np.float32], ids: NDArray[np.int32], values: NDArray[np.float32]) -> Self:
        """Return the scores in columns (P-1,), (P-1,K) and (P-1,K)."""
        return cls(array("f", own.tobytes()), array("i", ids.tobytes()), array("f", values.tobytes()))

    @classmethod
    def joined(cls, parts: Iterable["Scores"]) -> Self:
        """Return the scores of a prompt's parts, one after the other."""
        scores = cls()
        for part in parts:
            scores.own.extend(part.own)
            scores.ids.extend(part.ids)
            scores.values.extend(part.values)
        return scores

    def top(self, index: int) -> TopLogprobs:
        """Return the likeliest tokens at the position of token `index`."""
        width = len(self.ids) // len(self.own)
        some = slice(index * width, (index + 1) * width)
        return tuple(zip(self.ids[some], self.values[some], strict=True))


@dataclass(frozen=True)
class PromptReport:
    """The report of a prompt, which the first event carries."""

    scores: Scores | None = None
    """Of all tokens but the first; None unless `prompt_logprobs` was requested."""
    fork_counts: tuple[int, ...] = ()
    """Streams of each prompt token after the last fork layer. Empty unless `return_fork_counts` was requested."""
    fork_scores: tuple[ForkScores, ...] = ()
    """Of each prompt token. Empty unless `return_fork_scores` was requested."""

    @property
    def token_logprobs(self) -> tuple[float | None, ...]:
        """Log-probability of each prompt token; None for the first. Empty unless requested."""
        return () if self.scores is None else (None, *self.scores.own)

    @property
    def top_logprobs(self) -> tuple[TopLogprobs | None, ...]:
        """The likeliest tokens at each position, best first. Made whenever it is read."""
        return () if self.scores is None else (None, *map(self.scores.top, range(len(self.scores.own))))
