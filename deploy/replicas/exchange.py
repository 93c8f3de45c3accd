"""An HTTP exchange in two processes: the ingress has the client, a replica has the application."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Self

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Scope, Send

from thoughtbubbles.server.http.streaming import DONE, sse
from thoughtbubbles.server.observe.exchange import REQUEST_ID
from thoughtbubbles.server.protocol import errors

CARRIED = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
           "headers", "client", "server")  # fmt: skip
"""What of an ASGI scope a replica is told; the rest belongs to the process that made it."""


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A request that has been read, on its way to a replica."""

    scope: dict[str, Any]
    """Of ASGI, cut to what can be sent."""
    body: bytes
    """All of it."""

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> Self:
        """The request of this scope."""
        return cls(scope={name: scope[name] for name in CARRIED if name in scope}, body=body)


async def answers(app: ASGIApp, request: HttpRequest, pause: Callable[[], float]) -> AsyncGenerator[Message, None]:
    """What `app` sends for `request`, as it is sent. Whoever stops listening is, to the app, a client that left.

    After each part of the body nothing is sent for `pause()` seconds; what comes meanwhile is one part.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    body = [{"type": "http.request", "body": request.body, "more_body": False}]
    left = asyncio.Event()

    async def receive() -> Message:
        if body:
            return body.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    running: asyncio.Future[None] = asyncio.ensure_future(app(dict(request.scope), receive, sent.put))
    running.add_done_callback(lambda _: sent.put_nowait(None))
    try:
        waiting: list[Message | None] = []
        while None not in waiting:
            waiting = [await sent.get(), *(sent.get_nowait() for _ in range(sent.qsize()))]
            for message in _joined([message for message in waiting if message is not None]):
                yield message
            if waiting[-1] and waiting[-1].get("more_body", False):
                await asyncio.sleep(pause())
    finally:
        left.set()
        await running


def _joined(messages: list[Message]) -> list[Message]:
    """The same, with all parts of the body in one."""
    parts = [message for message in messages if message["type"] == "http.response.body"]
    others = [message for message in messages if message["type"] != "http.response.body"]
    return [*others, {**parts[-1], "body": b"".join(part.get("body", b"") for part in parts)}] if parts else others


class Answer:
    """An answer on its way to the client, which gets a well-formed end whatever becomes of the replica."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None  # held back until a body follows: without one it could still be an error
        self._begun = False
        self._ended = False

    async def pass_on(self, message: Message) -> None:
        """Send what a replica sent."""
        if message["type"] == "http.response.start":
            del MutableHeaders(scope=message)[REQUEST_ID]  # Ray's proxy adds the same
            self._start = message
            return
        if not self._begun:
            assert self._start is not None  # ASGI: the start comes first
            await self._send(self._start)
            self._begun = True
        await self._send(message)
        self._ended = not message.get("more_body", False)

    async def fail(self, error: errors.ApiError) -> None:
        """End with `error`, unless the end was sent: as the answer, as the last event of a stream.

        Raises `error` where neither can be: the connection then breaks, so that nobody takes the half for the whole.
        """
        if self._ended:
            return
        if not self._begun:
            await errors.answer(error)(self._scope, _nothing, self._send)
        elif self._is_stream:
            await self._send({"type": "http.response.body", "body": sse(error.body) + DONE, "more_body": False})
        else:
            raise error

    @property
    def _is_stream(self) -> bool:
        assert self._start is not None
        return Headers(raw=self._start["headers"]).get("content-type", "").startswith("text/event-stream")


async def _nothing() -> Message:
    raise AssertionError("the request has been read")
