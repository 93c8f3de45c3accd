"""uvicorn's HTTP/1.1 connection, with an end to everything: heads, bodies, answers that nobody reads, their number.

uvicorn limits none of these; its `limit_concurrency` counts idle connections too and then refuses everybody, /health
as well, in plain text.
"""

import asyncio
import errno
import math
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

import httptools
from prometheus_client import Counter, Gauge
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from thoughtbubbles.server.observe.exchange import REQUEST_ID, request_id_of
from thoughtbubbles.server.protocol import errors

LARGEST_HEAD = 1 << 16
"""In bytes: the request line and all headers, those after a chunked body included."""
DISCARDED_BYTES = 1 << 26
"""How much of a body is read and thrown away once it is answered. A connection closed before all that was sent is read
is reset, and the client may lose the answer."""
LINGER_SECONDS = 2.0
"""How long what a client still sends is thrown away after an answer that ends the connection."""
SPARE_CONNECTIONS = 64
"""So many above the limit are told why they are refused, and may still ask for /health; more are closed at once."""
CROWDED = "thoughtbubbles.crowded"
"""The key of a scope whose connection is above the limit."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """When connections end, and what is counted of them."""

    read_seconds: float
    """A head must arrive within this time, and so must the rest of a body whose request is answered already."""
    write_seconds: float
    """An answer that is ready must be read within this time, or as much of it as makes room for more."""
    most: int
    """Connections served at a time."""
    open: Gauge
    """Those that are open."""
    closed: Counter
    """Those that this server ended, by `reason`."""


class _Connection(HttpToolsProtocol):
    """Closes itself when its client is late with a head, a body or reading, and refuses in JSON what is no HTTP."""

    limits: ClassVar[ConnectionLimits]
    _awaiting_head: asyncio.TimerHandle | None = None
    _awaiting_reader: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None  # once refused
    _answering: RequestResponseCycle | None = None
    _crowded = False
    _in_body = False
    _unparsed_bytes = 0  # of the head at hand
    _head_bytes = 0  # the same, as far as it is parsed
    _discarded_bytes = 0
    _body_due = math.inf
    _mistake: errors.ApiError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _limit_unread(transport, self.limits.write_seconds)
        self.limits.open.inc()
        self._crowded = len(self.connections) > self.limits.most
        if len(self.connections) > self.limits.most + SPARE_CONNECTIONS:
            self._end("limit")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.open.dec()
        if isinstance(exc, OSError) and exc.errno == errno.ETIMEDOUT:
            self.limits.closed.labels(reason="write_timeout").inc()
        for timer in (self._awaiting_head, self._awaiting_reader, self._lingering):
            if timer is not None:
                timer.cancel()
        if self._answering is not None:  # uvicorn tells the last request alone, which may wait behind this one
            _disconnect(self._answering)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._discard(data)
            return
        if not self._in_body:
            self._await_head()
            self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._awaiting_head is not None and self._unparsed_bytes > LARGEST_HEAD and self._lingering is None:
            self._refuse(errors.head_too_large(LARGEST_HEAD))

    def on_message_begin(self) -> None:
        self._await_head()
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_awaiting_head()
        self._in_body = True
        self._body_due = self.loop.time() + self.limits.read_seconds
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or what was found wrong with it while it was parsed."""
        self._refuse(self._mistake or errors.invalid_http(msg))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch_reader()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        self.limits.closed.labels(reason="idle").inc()
        super().timeout_keep_alive_handler()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._answering = cycle
        self._watch_reader()
        if self._crowded:
            _scope_of(cycle)[CROWDED] = True
        super()._start_asgi_task(cycle, self._answered_by(app, cycle))  # type: ignore[arg-type]

    def _answered_by(self, app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
        """Return `app`, whose answers to `cycle` end when the request has been read, too."""
        old = _scope_of(cycle)["http_version"] != "1.1"
        if old:  # such a client knows no chunks: the answer ends with the connection
            cycle.chunked_encoding = False

        async def answered(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_and_read(message: Message) -> None:
                if message["type"] == "http.response.body":
                    if old:
                        cycle.expected_content_length = len(message.get("body", b""))
                    if cycle.more_body and not message.get("more_body", False):
                        await send({**message, "more_body": True})
                        await self._read_rest(cycle)
                        message = {"type": "http.response.body"}
                await send(message)

            await app(scope, receive, send_and_read)

        return answered

    async def _read_rest(self, cycle: RequestResponseCycle) -> None:
        """Throw away the rest of a body that is answered, so that the answer is not lost; within limits."""
        due, left = max(self._body_due, self.loop.time() + LINGER_SECONDS), DISCARDED_BYTES
        try:
            async with asyncio.timeout_at(due):
                while cycle.more_body and not cycle.disconnected and left > 0:
                    message: MutableMapping[str, Any] = dict(await cycle.receive())
                    left -= len(message.get("body", b""))
        except TimeoutError:
            self.limits.closed.labels(reason="body_timeout").inc()
        else:
            if left <= 0:
                self.limits.closed.labels(reason="body_too_large").inc()
        cycle.keep_alive = cycle.keep_alive and not cycle.more_body

    def _await_head(self) -> None:
        if self._awaiting_head is None:
            self._awaiting_head = self.loop.call_later(self.limits.read_seconds, self._end, "head_timeout")

    def _stop_awaiting_head(self) -> None:
        self._unparsed_bytes = 0
        if self._awaiting_head is not None:
            self._awaiting_head.cancel()
            self._awaiting_head = None

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > LARGEST_HEAD:
            self._mistake = errors.head_too_large(LARGEST_HEAD)
            raise httptools.HttpParserError(self._mistake.message)  # ends the parsing; `send_400_response` comes next

    def _watch_reader(self) -> None:
        """Begin to wait for a client that has something to read, or stop."""
        if self._awaiting_reader is not None:
            self._awaiting_reader.cancel()
            self._awaiting_reader = None
        if self._to_be_read():
            self._awaiting_reader = self.loop.call_later(self.limits.write_seconds, self._end_unread)

    def _to_be_read(self) -> bool:
        """Return whether nothing more is written before the client reads: buffers are full, or all is written."""
        done = self._answering is None or self._answering.response_complete
        return self.flow.write_paused or (done and self.transport.get_write_buffer_size() > 0)

    def _end_unread(self) -> None:
        if self._to_be_read():
            self._end("write_timeout")

    def _end(self, reason: str) -> None:
        """Close the connection; what its client has not read is lost, for `close` would wait for that."""
        self.limits.closed.labels(reason=reason).inc()
        self.transport.abort()

    def _refuse(self, error: errors.ApiError) -> None:
        """Answer in place of the application, if nothing is being answered, and close."""
        self.limits.closed.labels(reason=error.code).inc()
        self._stop_awaiting_head()
        cycle = self._answering
        begun = cycle is not None and cycle.response_started and not cycle.response_complete
        if cycle is not None and not cycle.response_complete:
            _disconnect(cycle)
        if begun or self.pipeline:
            self.transport.close()
        else:
            self.transport.write(self._written(error))
            self.transport.write_eof()
        self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _written(self, error: errors.ApiError) -> bytes:
        body = to_json(error.body)
        own = {REQUEST_ID: request_id_of(Headers(raw=self.headers or [])), "content-type": "application/json",
               "content-length": str(len(body)), "connection": "close"}  # fmt: skip
        headers = [
            *self.server_state.default_headers,
            *((name.encode(), value.encode()) for name, value in own.items()),
        ]
        return STATUS_LINE[error.status] + b"".join(b"%b: %b\r\n" % each for each in headers) + b"\r\n" + body

    def _discard(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._discarded_bytes > DISCARDED_BYTES:
            self.transport.abort()


def connections_within(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """Return the protocol of connections that are closed beyond these limits."""
    return type("Connection", (_Connection,), {"limits": limits})


def _limit_unread(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Have the kernel end the connection, too, if its client takes nothing of what is written: it holds megabytes."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
    if option is not None and math.isfinite(seconds):
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, max(1, int(seconds * 1000)))


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell the application that answers `cycle` that its client has left."""
    if not cycle.response_complete:
        cycle.disconnected = True
    cycle.message_event.set()


def _scope_of(cycle: RequestResponseCycle) -> MutableMapping[str, Any]:
    scope: MutableMapping[str, Any] = cycle.scope  # type: ignore[assignment]
    return scope
