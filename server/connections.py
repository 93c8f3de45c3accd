"""uvicorn's HTTP/1.1 connection, which has no limit of its own on how long a request's head may take to arrive."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def connections_within(seconds: float) -> type[asyncio.Protocol]:
    """A protocol that closes a connection when a head, once begun or once connected, is not whole after `seconds`."""

    class Connection(H11Protocol):
        _due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._time_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._time_head()

        def _time_head(self) -> None:
            if self.conn.their_state is h11.IDLE:
                self._due = self._due or self.loop.call_later(seconds, self.transport.close)
            elif self._due is not None:
                self._due.cancel()
                self._due = None

    return Connection
