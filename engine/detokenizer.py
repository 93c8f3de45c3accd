"""Token ids to text as it may be shown: never half a character, never the beginning of a stop string."""

from encodings.utf_8 import IncrementalDecoder
from typing import NamedTuple

from thoughtbubbles.model import Tokenizer


class Piece(NamedTuple):
    """What one more token adds."""

    text: str
    """May be shown now."""
    stop: str | None = None
    """The stop string that was completed, if one was."""


class Detokenizer:
    """Decodes one completion token by token; the pieces' texts joined are the decoded ids, cut at a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), *, include_stop: bool = False) -> None:
        self._tokenizer = tokenizer
        self.stops = bool(stop)
        """Whether there are stop strings; else nothing but half a character is ever held back."""
        self._stop = stop
        self._include_stop = include_stop
        self._decoder = IncrementalDecoder(errors="replace")
        self._held = ""

    def push(self, token_id: int, *, may_stop: bool = True) -> Piece:
        """Add a token. With `may_stop` false a stop string in it is text like any other."""
        self._held += self.decode(token_id)
        return self._release(may_stop)

    def decode(self, token_id: int) -> str:
        """Add a token where nothing `stops`: the text that it adds."""
        text = None if self._decoder.buffer else self._tokenizer.token_text(token_id)
        return self._decoder.decode(self._tokenizer.token_bytes(token_id)) if text is None else text

    def flush(self) -> str:
        """What was held back, at the end of the completion."""
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return text

    def _release(self, may_stop: bool) -> Piece:
        if may_stop and (found := self._first_stop()):
            start, stop = found
            text = self._held[: start + len(stop) * self._include_stop]
            self._held = ""
            return Piece(text, stop)
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return Piece(text)

    def _first_stop(self) -> tuple[int, str] | None:
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        return min(found, key=lambda each: each[0], default=None)


def _overlap(text: str, stop: str) -> int:
    """The longest tail of `text` that could still become `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
