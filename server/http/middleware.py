"""What holds for every request, as pure ASGI: a wrapper that buffers would hide a client's leaving (API.md §8)."""

import asyncio

from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thoughtbubbles.server.http.connections import CROWDED
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.protocol.errors import answer, crowded, no_key, too_large, too_slow
from thoughtbubbles.server.routes.playground import FILES as PLAYGROUND

OPEN = frozenset({*PLAYGROUND, "/health", "/ready", "/version", "/metrics", "/openapi.json"})
"""Routes that need no key: they tell nothing of anybody's requests, and probes have none."""


PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Routes that are answered on connections above the limit, too: a crowded server is alive."""


class ConnectionLimit:
    """A request on a connection above the limit goes no further than this, unless it is a probe."""

    def __init__(self, app: ASGIApp, limit: int, rejected: Counter) -> None:
        self._app = app
        self._limit = limit
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503, or pass the request on."""
        if CROWDED not in scope or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        error = crowded(self._limit)
        self._rejected.labels(reason=error.code).inc()
        await answer(error)(scope, receive, send)


class KeyCheck:
    """A request without one of `keys`, where there are any, goes no further than this."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, rejected: Counter) -> None:
        self._app = app
        self._keys = keys
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        shown = Headers(scope=scope).get("authorization", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or scope["path"] in OPEN or self._keys.admit(shown.encode("latin-1")):
            await self._app(scope, receive, send)
            return
        error = no_key()
        self._rejected.labels(reason=error.code).inc()
        await answer(error)(scope, receive, send)


class BodyLimit:
    """A body longer than `length` bytes, or one that takes longer than `seconds`, is refused while it is read."""

    def __init__(self, app: ASGIApp, length: int, seconds: float) -> None:
        self._app = app
        self._length = length
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raise the refusal from `receive`, so that whoever reads the body answers with it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length, due = 0, asyncio.get_running_loop().time() + self._seconds
        reading = True

        async def receive_within_limits() -> Message:
            nonlocal length, reading
            try:
                # What comes after the body is the client's leaving, and has no limit.
                async with asyncio.timeout_at(due if reading else None):
                    message = await receive()
            except TimeoutError:
                raise too_slow(self._seconds) from None
            reading = message.get("more_body", False)
            length += len(message.get("body", b""))
            if length > self._length:
                raise too_large(self._length)
            return message

        await self._app(scope, receive_within_limits, send)


class HeadAsGet:
    """A HEAD request is answered as GET, without the body: FastAPI's routes have no HEAD of their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass GET on in place of HEAD, and the headers of its answer back."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_no_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        got = {**scope, "method": "GET"}
        await self._app(got, receive, send_no_body)
        scope["route"] = got.get("route")
