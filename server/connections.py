"""uvicorn's HTTP/1.1 connection, which has no limit of its own on how long or how large a request's head may be."""

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 1 << 16
"""In bytes."""


class _Connection(HttpToolsProtocol):
    """Closes itself when a head, once begun or once connected, is late or larger than `LARGEST_HEAD`."""

    head_seconds: ClassVar[float]
    """When a head is late."""
    _due: asyncio.TimerHandle | None = None  # while a head is awaited
    _in_body = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._await_head()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._due is not None and self._head_bytes > LARGEST_HEAD:
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def on_message_begin(self) -> None:
        self._await_head()
        super().on_message_begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._due = self._due or self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        self._head_bytes = 0
        if self._due is not None:
            self._due.cancel()
            self._due = None


def connections_within(seconds: float) -> type[HttpToolsProtocol]:
    """Connections that are closed when a head, once begun or once connected, is not whole after `seconds`."""
    return type("Connection", (_Connection,), {"head_seconds": seconds})
