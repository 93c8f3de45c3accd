"""Token ids to text that may be shown: no incomplete character, and no beginning of a stop string."""

from encodings.utf_8 import IncrementalDecoder
from typing import NamedTuple

from thoughtbubbles.model import Tokenizer


class Piece(NamedTuple):
    """The text that one more token adds."""

    text: str
    """May be shown now."""
    stop: str | None = None
    """The stop string that it completed, if any."""


class Detokenizer:
    """Decodes one completion token by token. The texts joined are the decoded ids, cut at a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), *, include_stop: bool = False) -> None:
        self._tokenizer = tokenizer
        self.stops = bool(stop)
        """Whether there are stop strings. If not, only incomplete characters are withheld."""
        self._stop = stop
        self._include_stop = include_stop
        self._decoder = IncrementalDecoder(errors="replace")
        self._withheld = ""
        self._ordinary = 0
        """Characters withheld when a stop string was last ordinary text: one that ends among them stays so."""

    def push(self, token_id: int, *, may_stop: bool = True) -> Piece:
        """Add a token. If `may_stop` is false, a stop string in it is ordinary text."""
        self._withheld += self.decode(token_id)
        if not may_stop:
            self._ordinary = len(self._withheld)
        return self._release()

    def decode(self, token_id: int) -> str:
        """Add a token if there are no stop strings, and return the text that it adds."""
        text = None if self._decoder.buffer else self._tokenizer.token_text(token_id)
        return self._decoder.decode(self._tokenizer.token_bytes(token_id)) if text is None else text

    def flush(self) -> str:
        """Return the withheld text, at the end of the completion."""
        text, self._withheld = self._withheld + self._decoder.decode(b"", final=True), ""
        return text

    def _release(self) -> Piece:
        if found := self._first_stop():
            start, stop = found
            text = self._withheld[: start + len(stop) * self._include_stop]
            self._withheld = ""
            return Piece(text, stop)
        keep = max((_overlap(self._withheld, stop) for stop in self._stop), default=0)
        text, self._withheld = (
            self._withheld[: len(self._withheld) - keep],
            self._withheld[len(self._withheld) - keep :],
        )
        self._ordinary = max(0, self._ordinary - len(text))
        return Piece(text)

    def _first_stop(self) -> tuple[int, str] | None:
        first = self._ordinary + 1
        found = [(at, stop) for stop in self._stop if (at := self._withheld.find(stop, max(0, first - len(stop)))) >= 0]
        return min(found, key=lambda each: each[0], default=None)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
