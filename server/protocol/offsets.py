"""Where tokens stand in the text that they spell, counted in characters as they come."""

import codecs


class Offsets:
    """Places tokens one after the other; bytes that are not UTF-8 count as the U+FFFD they are decoded to."""

    def __init__(self, start: int = 0) -> None:
        """`start` characters of text stand before the first token."""
        self._characters = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def place(self, token: bytes) -> int:
        """The offset of the character that the token's first byte belongs to, which an earlier token may have begun."""
        begun, _ = self._decoder.getstate()
        offset = self._characters + (bool(begun) and breaks(begun, token[:1]))
        self._characters += len(self._decoder.decode(token))
        return offset


def breaks(begun: bytes, byte: bytes) -> bool:
    """Return whether `byte` does not go on with the character that `begun` has begun, but stands after it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    complete = decoder.decode(begun + byte)
    unfinished, _ = decoder.getstate()
    return len(complete) + bool(unfinished) > 1
