"""One HTTP request and its answer, from the first byte read to the last one sent: what logs and traces tell of it."""

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
    """Filled in on the way, read at the end."""

    request_id: str
    """The client's own where it is printable and short, else a new one; every answer carries it."""
    headers: Mapping[str, str]
    """The request's."""
    method: str
    path: str
    arrived: float = field(default_factory=time.monotonic)
    """When it began, on the monotonic clock."""
    began: int = field(default_factory=time.time_ns)
    """The same in nanoseconds since 1970."""
    route: str | None = None
    """The pattern that its path met; None where it met none."""
    status: int | None = None
    """None where the client left before it was said."""
    generation: Generation | None = None
    """What was asked of the engine."""
    prompts: Sequence[str] | None = None
    """Where they may be logged."""
    seconds: float = 0.0
    """How long all of it took."""

    @classmethod
    def of(cls, scope: Scope) -> "Exchange":
        """The exchange that this request belongs to."""
        exchange: Exchange = scope[SCOPE_KEY]
        return exchange


class Exchanges:
    """Opens an exchange for every request, and hands it to each of `tell` when it is over, however it ends."""

    def __init__(self, app: ASGIApp, *tell: Callable[[Exchange], None]) -> None:
        self._app = app
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note the status and add the request's id to the response's start."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[SCOPE_KEY] = _opened(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = exchange.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            exchange.seconds = time.monotonic() - exchange.arrived
            exchange.route = getattr(scope.get("route"), "path", None)
            for tell in self._tell:
                tell(exchange)


def request_id_of(headers: Headers) -> str:
    """Return the id that answers to a request with these headers carry: its own if that is plain, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if PLAIN_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _opened(scope: Scope) -> Exchange:
    headers = Headers(scope=scope)
    return Exchange(request_id=request_id_of(headers), headers=headers, method=scope["method"], path=scope["path"])
