"""Join an echoed prompt and its completion: a character that starts in one and ends in the other stays whole."""

import codecs
from collections.abc import Iterable

from thoughtbubbles.server.protocol.offsets import breaks

REPLACEMENT = "\ufffd"


class EchoJoiner:
    """Joins the text of a completion, which the engine decodes alone, to a prompt that may end within a character.

    Decoded alone, each byte that continues the prompt's last character is a U+FFFD; these are removed from the text.
    """

    def __init__(self, prompt: bytes) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = self._decoder.decode(prompt)
        """The whole characters of the prompt."""
        self._incomplete = bool(self._decoder.getstate()[0])
        self._to_remove = 0  # of the completion's next characters

    def join(self, tokens: Iterable[bytes], text: str, *, last: bool) -> str:
        """Return the text that the next `tokens` add; `text` is theirs when decoded alone. `last` if none follow."""
        character = self._character(b"".join(tokens)) if self._incomplete else ""
        if self._incomplete and last:
            self._incomplete, character = False, REPLACEMENT
        removed = min(self._to_remove, len(text))
        self._to_remove -= removed
        return character + text[removed:]

    def _character(self, completion: bytes) -> str:
        """Return the incomplete character once these bytes complete or break it; empty until then."""
        for byte in (completion[at : at + 1] for at in range(len(completion))):
            if breaks(self._decoder.getstate()[0], byte):
                self._incomplete = False
                return REPLACEMENT
            self._to_remove += 1
            if character := self._decoder.decode(byte):
                self._incomplete = False
                return character
        return ""
