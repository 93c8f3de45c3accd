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
    first_match: int = 0
    """The same for the first draft of a request, if that is more. It doubles with each draft that did not pay; after
    one that did it is `match`."""
    pays: int = 0
    """The fewest right guesses with which a draft has paid."""
    gradual: bool = True
    """Whether a draft has as many guesses as tokens match, less `match` - 1; if not, it has as many as it may have."""
    least: int = 1
    """The fewest guesses of a draft."""
    least_together: int = 0
    """The fewest guesses of a step, for each request that decodes: all of them wait for the step."""
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
        self._needed = max(guessing.match, guessing.first_match)
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where in `_tokens` is what last followed these `match` tokens

    def guess(self, prompt: Sequence[int], output: Sequence[int], limit: int) -> list[int]:
        """Return at most `limit` tokens that may follow prompt and output, both of which only ever grow.

        A text that repeats itself is taken to go on so.
        """
        self._read(prompt, output)
        size = min(self._most, limit)
        start = self._after.get(tuple(self._tokens[-self._guessing.match :]))
        if start is None or (matching := self._matching(start)) < self._needed:
            return []
        if self._guessing.gradual:
            size = min(size, matching - self._guessing.match + 1)
        if size < self._guessing.least:
            return []
        period = len(self._tokens) - start
        return [self._tokens[start + i % period] for i in range(size)]

    def learn(self, right: int) -> None:
        """Guess sooner or later from now on, after a draft of which so many guesses were right."""
        self._needed = self._guessing.match if right >= self._guessing.pays else 2 * self._needed

    def _read(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Enter what followed any `match` tokens, for the tokens since the last call."""
        first, match = len(self._tokens), self._guessing.match
        self._tokens += prompt[first:]
        self._tokens += output[len(self._tokens) - len(prompt) :]
        for end in range(max(first, match), len(self._tokens)):
            self._after[tuple(self._tokens[end - match : end])] = end

    def _matching(self, start: int) -> int:
        """Return how many tokens before `start` equal the last ones, as far as it matters."""
        most = min(start, max(self._most + self._guessing.match - 1, self._needed))
        ends = zip(reversed(self._tokens[start - most : start]), reversed(self._tokens[-most:]), strict=True)
        return next((i for i, (one, other) in enumerate(ends) if one != other), most)
