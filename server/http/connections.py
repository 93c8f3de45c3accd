"""uvicorn's HTTP/1.1 connection with limits: for heads, bodies, answers that are not read, and their number.

uvicorn has none of these. Its `limit_concurrency` counts idle connections, and above it refuses every request, even
/health, in plain text.
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

from thoughtbubbles.server.http.offers import Declining
from thoughtbubbles.server.observe.exchange import REQUEST_ID, http_request_id_of
from thoughtbubbles.server.protocol import errors

MAX_HEAD_BYTES = 1 << 16
"""Most bytes of the request line and all headers, including those after a chunked body."""
MAX_DISCARDED_BYTES = 1 << 26
"""Most bytes of a body that are read and discarded after its answer. If the server closes a connection before it has
read everything, TCP resets it, and the client may lose the answer."""
LINGER_SECONDS = 2.0
"""How long incoming bytes are discarded after an answer that ends the connection."""
EXTRA_CONNECTIONS = 64
"""Connections above the limit that are answered, with the reason or on probes; further ones are closed at once."""
MAX_KERNEL_MILLISECONDS = (1 << 31) - 1
"""The longest limit of the kernel for an unread answer, about 25 days."""
OVER_LIMIT = "thoughtbubbles.over_limit"
"""The key of a scope whose connection is above the limit."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """When connections are closed, and the metrics that count them."""

    read_seconds: float
    """Time limit for a head to arrive, and for the rest of a body that has been answered."""
    write_seconds: float
    """Time limit for a client to read a complete answer, or enough of one that more can be written."""
    most: int
    """Most connections that are served at a time."""
    open: Gauge
    """Counts open connections."""
    closed: Counter
    """Counts connections that this server closed, by `reason`."""


class _Connection(Declining):
    """Closes itself when its client is slow to send or read, and answers what is not HTTP in JSON."""

    limits: ClassVar[ConnectionLimits]
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None  # once refused
    _answering: RequestResponseCycle | None = None
    _over_limit = False
    _in_body = False
    _unparsed_bytes = 0  # of the current head
    _head_bytes = 0  # of the current head, as far as it is parsed
    _discarded_bytes = 0
    _body_due = math.inf
    _mistake: errors.ApiError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _limit_unread(transport, self.limits.write_seconds)
        self.limits.open.inc()
        self._over_limit = len(self.connections) > self.limits.most
        if len(self.connections) > self.limits.most + EXTRA_CONNECTIONS:
            self._end("limit")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.open.dec()
        if isinstance(exc, OSError) and exc.errno == errno.ETIMEDOUT:
            self.limits.closed.labels(reason="write_timeout").inc()
        for timer in (self._head_timer, self._read_timer, self._lingering):
            if timer is not None:
                timer.cancel()
        if self._answering is not None:  # uvicorn notifies the last request only, which may be queued behind this one
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
        if self._head_timer is not None and self._unparsed_bytes > MAX_HEAD_BYTES and self._lingering is None:
            self._refuse(errors.head_too_large(MAX_HEAD_BYTES))

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

    def on_head(self) -> None:
        self._stop_awaiting_head()
        self._in_body = True
        self._body_due = self.loop.time() + self.limits.read_seconds
        super().on_head()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, or a head in which parsing found a mistake."""
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
        if self._over_limit:
            _scope_of(cycle)[OVER_LIMIT] = True
        super()._start_asgi_task(cycle, self._answered_by(app, cycle))  # type: ignore[arg-type]

    def _answered_by(self, app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
        """Return `app` with answers to `cycle` that end only after the whole request has been read."""
        old = _scope_of(cycle)["http_version"] != "1.1"
        if old:  # HTTP/1.0 has no chunks: the answer ends with the connection
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
        """Read and discard the rest of a body that has been answered, within limits, so that the answer is not lost."""
        due, left = max(self._body_due, self.loop.time() + LINGER_SECONDS), MAX_DISCARDED_BYTES
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
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.read_seconds, self._end, "head_timeout")

    def _stop_awaiting_head(self) -> None:
        self._unparsed_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._mistake = errors.head_too_large(MAX_HEAD_BYTES)
            raise httptools.HttpParserError(self._mistake.message)  # ends parsing; uvicorn calls `send_400_response`

    def _watch_reader(self) -> None:
        """Start the timer of a client that has something to read, or stop it."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        if self._client_must_read():
            self._read_timer = self.loop.call_later(self.limits.write_seconds, self._end_unread)

    def _client_must_read(self) -> bool:
        """Return whether nothing is written until the client reads: buffers are full, or the answer is complete."""
        complete = self._answering is None or self._answering.response_complete
        return self.flow.write_paused or (complete and self.transport.get_write_buffer_size() > 0)

    def _end_unread(self) -> None:
        if self._client_must_read():
            self._end("write_timeout")

    def _end(self, reason: str) -> None:
        """Abort the connection. Unread bytes are lost: `close` would wait for the client to read them."""
        self.limits.closed.labels(reason=reason).inc()
        self.transport.abort()

    def _refuse(self, error: errors.ApiError) -> None:
        """Answer with `error` unless an answer has started, and close."""
        self.limits.closed.labels(reason=error.code).inc()
        self._stop_awaiting_head()
        cycle = self._answering
        started = cycle is not None and cycle.response_started and not cycle.response_complete
        if cycle is not None and not cycle.response_complete:
            _disconnect(cycle)
        if started or self.pipeline:
            self.transport.close()
        else:
            self.transport.write(self._written(error))
            self.transport.write_eof()
        self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _written(self, error: errors.ApiError) -> bytes:
        body = to_json(error.body)
        own = {REQUEST_ID: http_request_id_of(Headers(raw=self.headers or [])), "content-type": "application/json",
               "content-length": str(len(body)), "connection": "close"}  # fmt: skip
        headers = [
            *self.server_state.default_headers,
            *((name.encode(), value.encode()) for name, value in own.items()),
        ]
        return STATUS_LINE[error.status] + b"".join(b"%b: %b\r\n" % each for each in headers) + b"\r\n" + body

    def _discard(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._discarded_bytes > MAX_DISCARDED_BYTES:
            self.transport.abort()


def connections_within(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """Return the class of connections that have these limits."""
    return type("Connection", (_Connection,), {"limits": limits})


def _limit_unread(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Have the kernel end the connection if its client reads nothing: the kernel buffers megabytes of an answer."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only
    if option is not None:
        milliseconds = min(max(1, 1000 * seconds), MAX_KERNEL_MILLISECONDS)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, int(milliseconds))


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell the application that the client of `cycle` has disconnected."""
    if not cycle.response_complete:
        cycle.disconnected = True
    cycle.message_event.set()


def _scope_of(cycle: RequestResponseCycle) -> MutableMapping[str, Any]:
    scope: MutableMapping[str, Any] = cycle.scope  # type: ignore[assignment]
    return scope
