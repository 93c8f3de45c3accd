"""Character offsets of tokens in the text that they spell."""

import codecs


class Offsets:
    """Computes the offset of each token in turn. Bytes that are not UTF-8 count as the U+FFFD they are decoded to."""

    def __init__(self, start: int = 0) -> None:
        """`start` is the number of characters before the first token."""
        self._characters = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: bytes) -> int:
        """Return the offset of the next token: of the character of its first byte, which an earlier token may start."""
        started, _ = self._decoder.getstate()
        offset = self._characters
        if started and breaks(started, token[:1]):
            offset += len(started.decode("utf-8", "replace"))
        self._characters += len(self._decoder.decode(token))
        return offset


def breaks(started: bytes, byte: bytes) -> bool:
    """Return whether `byte` does not continue the character whose first bytes are `started`."""
    return len((started + byte).decode("utf-8", "replace")) > 1
