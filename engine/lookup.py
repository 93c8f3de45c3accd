"""Speculation by look-up: guess the next tokens of a request from what followed its last ones earlier in its text."""

from collections.abc import Sequence
from dataclasses import dataclass

MATCH = 5
"""Tokens that must have occurred before in the same order, for what followed them to be guessed, where each guess costs
time."""
UNLIMITED = 1 << 30
"""`Guessing.most_tokens` where steps take any number."""


@dataclass(frozen=True, kw_only=True)
class Guessing:
    """Which guesses pay on an executor. The defaults are for one in step with the host, where each guess costs time.

    There a wrong guess costs a part of a step, so few are made after a short match: in prose and code five tokens
    often recur by chance, and what follows them then differs soon.
    """

    match: int = MATCH
    """Tokens that must have occurred before in the same order, for what followed them to be guessed."""
    gradual: bool = True
    """Whether a draft has as many guesses as tokens match, less `match` - 1; if not, it has as many as it may have."""
    least: int = 1
    """The fewest guesses of a draft."""
    most_tokens: int = UNLIMITED
    """Most tokens that a step computes of requests with a draft: of each the newest, and the guesses."""

    def limit(self, requests: int) -> int:
        """Return the most guesses of each of so many running requests; fewer than `least` if none pays."""
        return self.most_tokens // requests - 1


GUESSING = Guessing()


class Lookup:
    """Guesses tokens of one request."""

    def __init__(self, most: int, guessing: Guessing = GUESSING) -> None:
        """`most` is the most guesses of a draft."""
        self._most = most
        self._guessing = guessing
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where in `_tokens` is what last followed these `match` tokens

    def guess(self, prompt: Sequence[int], output: Sequence[int], limit: int) -> list[int]:
        """Return at most `limit` tokens that may follow prompt and output, both of which only ever grow.

        A text that repeats itself is taken to go on so.
        """
        self._read(prompt, output)
        size = min(self._most, limit)
        start = self._after.get(tuple(self._tokens[-self._guessing.match :]))
        if start is None:
            return []
        if self._guessing.gradual:
            size = min(size, self._matching(start) - self._guessing.match + 1)
        if size < self._guessing.least:
            return []
        period = len(self._tokens) - start
        return [self._tokens[start + i % period] for i in range(size)]

    def _read(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Enter what followed any `match` tokens, for the tokens since the last call."""
        first, match = len(self._tokens), self._guessing.match
        self._tokens += prompt[first:]
        self._tokens += output[len(self._tokens) - len(prompt) :]
        for end in range(max(first, match), len(self._tokens)):
            self._after[tuple(self._tokens[end - match : end])] = end

    def _matching(self, start: int) -> int:
        """Return how many tokens before `start` equal the last ones, as far as it matters."""
        most = min(start, self._most + self._guessing.match - 1)
        ends = zip(reversed(self._tokens[start - most : start]), reversed(self._tokens[-most:]), strict=True)
        return next((i for i, (one, other) in enumerate(ends) if one != other), most)
