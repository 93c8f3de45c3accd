"""What is told of a prompt: kept small, for it waits until the whole answer is written.

Letters: P tokens of the prompt, K likeliest tokens in the place of each.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

TopLogprobs = tuple[tuple[int, float], ...]
"""The likeliest tokens in one place and their log-probabilities, best first."""
Scored = tuple[float, TopLogprobs]
"""The log-probability of a token, and the likeliest tokens in its place."""


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of a prompt's second and later tokens: 4 + 8 · K bytes each.

    As Python's objects, which they become when they are read, they take 136 bytes for each of the K.
    """

    own: "array[float]" = field(default_factory=lambda: array("f"))
    """(P-1) of the tokens themselves."""
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    """((P-1)·K) the likeliest ones."""
    values: "array[float]" = field(default_factory=lambda: array("f"))
    """((P-1)·K) of these."""

    def extend(self, scored: Iterable[Scored]) -> None:
        """Take in the next tokens; K is the same for all."""
        for logprob, top in scored:
            self.own.append(logprob)
            self.ids.extend(token_id for token_id, _ in top)
            self.values.extend(value for _, value in top)

    def top(self, index: int) -> TopLogprobs:
        """The likeliest tokens in the place of token `index` of these."""
        width = len(self.ids) // len(self.own)
        some = slice(index * width, (index + 1) * width)
        return tuple(zip(self.ids[some], self.values[some], strict=True))


@dataclass(frozen=True)
class PromptReport:
    """What is told of the prompt, with the first event."""

    scores: Scores | None = None
    """Of all tokens but the first; None unless `prompt_logprobs` was asked."""
    fork_counts: tuple[int, ...] = ()
    """Streams of each prompt token after the last fork layer. Empty unless `return_fork_counts` was asked."""

    @property
    def token_logprobs(self) -> tuple[float | None, ...]:
        """Log-probability of each prompt token; None for the first. Empty unless asked."""
        return () if self.scores is None else (None, *self.scores.own)

    @property
    def top_logprobs(self) -> tuple[TopLogprobs | None, ...]:
        """The likeliest tokens in each place, best first. Made anew whenever it is read."""
        return () if self.scores is None else (None, *map(self.scores.top, range(len(self.scores.own))))
