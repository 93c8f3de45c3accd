"""Where an echoed prompt meets its completion: a character that begins in one and ends in the other stays whole."""

import codecs
from collections.abc import Iterable

from thoughtbubbles.server.protocol.offsets import breaks

REPLACEMENT = "\ufffd"


class Seam:
    """Joins the text of a completion, which the engine decodes on its own, to a prompt that may end within a character.

    Alone, each byte that goes on with the prompt's last character is a U+FFFD; these are taken out of the text again.
    """

    def __init__(self, prompt: bytes) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = self._decoder.decode(prompt)
        """The whole characters of the prompt."""
        self._open = bool(self._decoder.getstate()[0])
        self._taken_out = 0  # of the completion's characters to come

    def join(self, tokens: Iterable[bytes], text: str, *, last: bool) -> str:
        """Return what `tokens`, alone `text`, add to all that came before them; `last` if nothing follows."""
        character = self._character(b"".join(tokens)) if self._open else ""
        if self._open and last:
            self._open, character = False, REPLACEMENT
        out = min(self._taken_out, len(text))
        self._taken_out -= out
        return character + text[out:]

    def _character(self, completion: bytes) -> str:
        """Return the character at the seam once these bytes end or break it, and nothing before."""
        for byte in (completion[at : at + 1] for at in range(len(completion))):
            if breaks(self._decoder.getstate()[0], byte):
                self._open = False
                return REPLACEMENT
            self._taken_out += 1
            if character := self._decoder.decode(byte):
                self._open = False
                return character
        return ""
