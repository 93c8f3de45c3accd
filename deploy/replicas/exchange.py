"""One HTTP exchange across two processes: the ingress has the client's connection, a replica the application."""

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
"""The keys of an ASGI scope that are sent to a replica; the others are of the ingress's process."""


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A request that has been read, on its way to a replica."""

    scope: dict[str, Any]
    """The ASGI scope, without what cannot be sent."""
    body: bytes
    """The whole body."""

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> Self:
        """Return the request with this scope."""
        return cls(scope={name: scope[name] for name in CARRIED if name in scope}, body=body)


async def answers(app: ASGIApp, request: HttpRequest, pause: Callable[[], float]) -> AsyncGenerator[Message, None]:
    """Yield what `app` sends for `request`, as it is sent. Closing the generator is a disconnect to `app`.

    After each part of the body nothing is yielded for `pause()` seconds; parts that come meanwhile are joined.
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
    """Return the messages with all parts of the body joined into one."""
    parts = [message for message in messages if message["type"] == "http.response.body"]
    others = [message for message in messages if message["type"] != "http.response.body"]
    return [*others, {**parts[-1], "body": b"".join(part.get("body", b"") for part in parts)}] if parts else others


class Answer:
    """An answer on its way to the client. It has a well-formed end even if the replica dies."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None  # sent with the first part of the body: until then an error can replace it
        self._begun = False
        self._ended = False

    async def pass_on(self, message: Message) -> None:
        """Send a message from the replica to the client."""
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
        """End with `error`, as the answer or as the last event of a stream, unless the answer is complete.

        Raises `error` if part of an answer that is no stream has been sent: the connection then breaks, and the client
        sees that the answer is incomplete.
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
