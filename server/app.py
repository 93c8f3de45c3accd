"""The ASGI application: routes, what wraps them, and the worker's life."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from thoughtbubbles.server.http.middleware import BodyLimit, ConnectionLimit, HeadAsGet, KeyCheck
from thoughtbubbles.server.observe.exchange import Exchanges
from thoughtbubbles.server.observe.logs import log_exchange
from thoughtbubbles.server.protocol.errors import ApiError, on_api_error, on_http_exception, on_unexpected
from thoughtbubbles.server.routes import chat, completions, operations, playground, tokenizer
from thoughtbubbles.server.routes.openapi import DescribedApp, refusals
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.version import VERSION

CLIENT_CLOSED_REQUEST = 499
"""nginx's name for an answer that nobody is there to get."""
EXPOSED_HEADERS = ("x-request-id", "x-ignored-parameters", "x-should-retry", "retry-after")
"""What a page of another origin may read."""


def create_app(service: Service) -> ASGIApp:
    """The application of `service`, whose worker starts and stops with the application's lifespan."""
    # Else sse-starlette cuts every stream half a second after SIGTERM.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.worker.stop()

    # No pages of FastAPI's own: they load scripts from elsewhere.
    app = DescribedApp(needs_key=bool(service.keys.digests), title="Thoughtbubbles", version=VERSION, lifespan=lifespan,
                       docs_url=None, redoc_url=None)  # fmt: skip
    app.state.service = service
    for each in (completions, chat, tokenizer):
        app.include_router(each.router, responses=refusals(401, 500))
    app.include_router(operations.router, responses=refusals(500))
    app.include_router(playground.router)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, on_unexpected)
    return _wrapped(app, service)


def _wrapped(app: ASGIApp, service: Service) -> ASGIApp:
    """What holds for every request: around the application, whose middleware sees no answer to an unexpected error."""
    settings = service.settings
    app = HeadAsGet(app)
    app = BodyLimit(app, settings.max_body_bytes, settings.body_timeout_seconds)
    app = KeyCheck(app, service.keys, service.metrics.rejected)
    app = ConnectionLimit(app, settings.max_connections, service.metrics.rejected)
    if settings.cors_origins:
        # Outside the keys: a browser asks first, and shows none.
        app = CORSMiddleware(app, settings.cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",),
                             expose_headers=EXPOSED_HEADERS)  # fmt: skip
    return Exchanges(app, log_exchange, *service.tracing)


async def _on_disconnect(request: Request, _error: Exception) -> Response:
    request.app.state.service.metrics.disconnects.inc()
    return Response(status_code=CLIENT_CLOSED_REQUEST)
