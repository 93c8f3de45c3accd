"""Server-sent events out of bytes: a state machine that does no I/O and may be fed in pieces cut anywhere.

After the rules of https://html.spec.whatwg.org/multipage/server-sent-events.html, without what serves reconnecting
(`id` and `retry`): an answer that is generated as it is sent cannot be taken up again.
"""

import re
from dataclasses import dataclass

LINE_END = re.compile(rb"\r\n|\r|\n")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """What stands between two blank lines."""

    data: str
    """Its data lines, joined by newlines."""
    name: str = "message"
    """Its type."""


class EventDecoder:
    """Feed it the bytes of a stream as they come. What stands behind the last blank line at the end is no event."""

    def __init__(self) -> None:
        self._line = bytearray()  # the line that has not ended
        self._after_return = False  # a line feed that comes now belongs to the line end that a return has made
        self._at_start = True
        self._data: list[str] = []
        self._name = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes."""
        if self._after_return and chunk:
            chunk, self._after_return = chunk.removeprefix(b"\n"), False
        if chunk:
            self._after_return = chunk.endswith(b"\r")
        # Cut before decoding: no character holds the byte of a line end, so whole lines hold whole characters.
        first, *starts = LINE_END.split(chunk)
        self._line += first
        return [event for start in starts if (event := self._next_line(start)) is not None]

    def _next_line(self, start: bytes) -> Event | None:
        """The event that ends with the line at hand, if one does; `start` is what there is of the next line."""
        line, self._line = self._line, bytearray(start)
        if self._at_start:
            line, self._at_start = line.removeprefix(BYTE_ORDER_MARK), False
        if not line:
            return self._end_event()
        field, _, value = line.decode(errors="replace").partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
        elif field == "event":
            self._name = value.removeprefix(" ")
        return None  # a comment has an empty field; other fields mean nothing here

    def _end_event(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name = [], ""
        return Event("\n".join(data), name or "message") if data else None
