"""Decode server-sent events from bytes that are split anywhere. No I/O.

Follows https://html.spec.whatwg.org/multipage/server-sent-events.html without reconnecting (`id` and `retry`): a server
cannot continue an answer that it generates while sending it.
"""

import re
from dataclasses import dataclass

LINE_END = re.compile(rb"\r\n|\r|\n")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: the lines between two blank lines."""

    data: str
    """Its data lines, joined by newlines."""
    name: str = "message"
    """Its type."""


class EventDecoder:
    """Decodes a stream: call `feed` with its bytes as they arrive. Lines after the last blank line are not an event."""

    def __init__(self) -> None:
        self._line = bytearray()  # the incomplete line
        self._after_return = False  # a line feed that comes now belongs to the same line end
        self._at_start = True
        self._data: list[str] = []
        self._name = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes."""
        if self._after_return and chunk:
            chunk, self._after_return = chunk.removeprefix(b"\n"), False
        if chunk:
            self._after_return = chunk.endswith(b"\r")
        # Split before decoding: no character contains the bytes of a line end, so lines have whole characters.
        first, *starts = LINE_END.split(chunk)
        self._line += first
        return [event for start in starts if (event := self._next_line(start)) is not None]

    def _next_line(self, start: bytes) -> Event | None:
        """Return the event that ends with the current line, if any. `start` is the start of the next line."""
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
        return None  # comments have an empty field name; other fields are ignored

    def _end_event(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name = [], ""
        return Event("\n".join(data), name or "message") if data else None
