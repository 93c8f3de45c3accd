"""Checks of every request, as pure ASGI: middleware that buffers would hide that a client disconnects (API.md §8)."""

import asyncio
from collections.abc import Collection

from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thoughtbubbles.server.http.connections import OVER_LIMIT
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.protocol.errors import (
    answer,
    no_key,
    too_large,
    too_many_connections,
    too_slow,
    unsupported_encoding,
)

PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Routes that are answered even on connections above the limit: the server is alive."""


class ConnectionLimit:
    """Answers 503 on a connection above the limit, except to probes."""

    def __init__(self, app: ASGIApp, limit: int, rejected: Counter) -> None:
        self._app = app
        self._limit = limit
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503, or pass the request on."""
        if OVER_LIMIT not in scope or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        error = too_many_connections(self._limit)
        self._rejected.labels(reason=error.code).inc()
        await answer(error)(scope, receive, send)


class KeyCheck:
    """Answers 401 to a request without one of `keys`, if there are any, except on the paths `keyless`."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, keyless: Collection[str], rejected: Counter) -> None:
        self._app = app
        self._keys = keys
        self._keyless = keyless
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        sent = Headers(scope=scope).get("authorization", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or scope["path"] in self._keyless or self._keys.admit(sent.encode("latin-1")):
            await self._app(scope, receive, send)
            return
        error = no_key()
        self._rejected.labels(reason=error.code).inc()
        await answer(error)(scope, receive, send)


class BodyLimit:
    """Refuses a body that is longer than `length` bytes, or takes longer than `seconds`, while it is read."""

    def __init__(self, app: ASGIApp, length: int, seconds: float) -> None:
        self._app = app
        self._length = length
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have `receive` raise the refusal, so that the route that reads the body answers with it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length, due = 0, asyncio.get_running_loop().time() + self._seconds
        reading = True

        async def receive_within_limits() -> Message:
            nonlocal length, reading
            if not reading:  # after the body comes the disconnect, which has no time limit
                return await receive()
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                raise too_slow(self._seconds) from None
            reading = message.get("more_body", False)
            length += len(message.get("body", b""))
            if length > self._length:
                raise too_large(self._length)
            return message

        await self._app(scope, receive_within_limits, send)


class EncodingCheck:
    """Refuses a body with a Content-Encoding other than `identity`, when it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have `receive` raise the refusal, so that the route that reads the body answers with it."""
        sent = b", ".join(value for name, value in scope.get("headers", ()) if name == b"content-encoding")
        if all(each.strip().lower() in ("", "identity") for each in sent.decode("latin-1").split(",")):
            await self._app(scope, receive, send)
            return

        async def refuse() -> Message:
            raise unsupported_encoding(sent.decode("latin-1"))

        await self._app(scope, refuse, send)


class HeadAsGet:
    """Answers HEAD as GET without the body: FastAPI's routes do not handle HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass HEAD on as GET, and send its answer without the body."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_no_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        as_get = {**scope, "method": "GET"}
        await self._app(as_get, receive, send_no_body)
        scope["route"] = as_get.get("route")
