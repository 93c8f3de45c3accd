"""One HTTP request and its answer, from the first byte read to the last one sent; logs and traces are made of it."""

import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thoughtbubbles.server.bridge.generation import Generation

REQUEST_ID = "x-request-id"
PLAIN_ID = re.compile(r"[\x21-\x7e]{1,128}")
SCOPE_KEY = "thoughtbubbles.exchange"


@dataclass(eq=False, kw_only=True)
class Exchange:
    """Filled in while a request is answered, read when it is over."""

    http_request_id: str
    """Every answer carries it: the client's own if that is printable and short, else a new one."""
    headers: Mapping[str, str]
    """Of the request."""
    method: str
    path: str
    arrived: float = field(default_factory=time.monotonic)
    """When the request arrived, on the monotonic clock."""
    began: int = field(default_factory=time.time_ns)
    """The same in nanoseconds since 1970."""
    route: str | None = None
    """The pattern that the path matched; None if it matched none."""
    status: int | None = None
    """None if the client disconnected before the answer began."""
    generation: Generation | None = None
    """The request's generation, if it had one."""
    prompts: Sequence[str] | None = None
    """The request's prompts, if they may be logged."""
    seconds: float = 0.0
    """How long the exchange took."""

    @classmethod
    def of(cls, scope: Scope) -> "Exchange":
        """Return the exchange of the request with this ASGI scope."""
        exchange: Exchange = scope[SCOPE_KEY]
        return exchange


class Exchanges:
    """Middleware that makes an exchange of every request, and calls `observers` with it when the request is over."""

    def __init__(self, app: ASGIApp, *observers: Callable[[Exchange], None]) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record the status, and add the HTTP request's id to the answer's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[SCOPE_KEY] = _new_exchange(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = exchange.http_request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            exchange.seconds = time.monotonic() - exchange.arrived
            exchange.route = getattr(scope.get("route"), "path", None)
            for observe in self._observers:
                observe(exchange)


def http_request_id_of(headers: Headers) -> str:
    """Return the id of a request with these headers: its own if that is printable and short, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if PLAIN_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _new_exchange(scope: Scope) -> Exchange:
    headers = Headers(scope=scope)
    return Exchange(
        http_request_id=http_request_id_of(headers), headers=headers, method=scope["method"], path=scope["path"]
    )
