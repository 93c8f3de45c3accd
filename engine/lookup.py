"""Speculation by look-up: guess the next tokens of a request from what followed its last ones earlier in its text."""

from collections.abc import Sequence

MATCH = 5
"""Tokens that must have occurred before in the same order, for what followed them to be guessed."""


class Lookup:
    """Guesses tokens of one request. The longer its last tokens equal earlier ones, the more it guesses.

    A guess costs a part of a step even if it is wrong, so few are made after a short match: in prose and code five
    tokens often recur by chance, and what follows them then differs soon.
    """

    def __init__(self, most: int) -> None:
        """`most` is the most guesses of a draft."""
        self._most = most
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where in `_tokens` is what last followed these MATCH tokens

    def guess(self, prompt: Sequence[int], output: Sequence[int], limit: int) -> list[int]:
        """Return at most `limit` tokens that may follow prompt and output, both of which only ever grow.

        As many as match, less MATCH - 1; a text that repeats itself is taken to go on so.
        """
        self._read(prompt, output)
        start = self._after.get(tuple(self._tokens[-MATCH:]))
        if start is None:
            return []
        size = min(self._matching(start) - MATCH + 1, self._most, limit)
        period = len(self._tokens) - start
        return [self._tokens[start + i % period] for i in range(size)]

    def _read(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Enter what followed any MATCH tokens, for the tokens since the last call."""
        first = len(self._tokens)
        self._tokens += prompt[first:]
        self._tokens += output[len(self._tokens) - len(prompt) :]
        for end in range(max(first, MATCH), len(self._tokens)):
            self._after[tuple(self._tokens[end - MATCH : end])] = end

    def _matching(self, start: int) -> int:
        """Return how many tokens before `start` equal the last ones, as far as it matters."""
        most = min(start, self._most + MATCH - 1)
        ends = zip(reversed(self._tokens[start - most : start]), reversed(self._tokens[-most:]), strict=True)
        return next((i for i, (one, other) in enumerate(ends) if one != other), most)
