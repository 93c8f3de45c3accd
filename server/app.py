"""The ASGI application: routes, middleware, and the worker's start and stop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from thoughtbubbles.server.bridge.errors import GenerationError, LoadError
from thoughtbubbles.server.http.middleware import BodyLimit, ConnectionLimit, EncodingCheck, HeadAsGet, KeyCheck
from thoughtbubbles.server.observe.exchange import Exchanges
from thoughtbubbles.server.observe.logs import log_exchange
from thoughtbubbles.server.protocol.errors import ApiError
from thoughtbubbles.server.protocol.handlers import (
    on_api_error,
    on_disconnect,
    on_generation_error,
    on_http_exception,
    on_load_error,
    on_unexpected,
)
from thoughtbubbles.server.routes import admin, chat, completions, operations, playground, tokenizer
from thoughtbubbles.server.routes.openapi import ADMIN_BEARER, BEARER, DescribedApp
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.version import VERSION

KEYLESS = frozenset({*playground.FILES, "/health", "/ready", "/version", "/metrics", "/openapi.json"})
"""Paths that need no key: they show nothing of other requests, and probes have no key."""
ROUTERS = (completions.create, *(each.router for each in (chat, completions, tokenizer, operations, admin, playground)))
"""The routes, in the order in which they are tried: generation first."""
EXPOSED_HEADERS = ("x-request-id", "x-ignored-parameters", "x-should-retry", "retry-after")
"""Headers that pages of other origins may read."""


def create_app(service: Service) -> ASGIApp:
    """Return the application of `service`. Its lifespan starts and stops the worker."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        await service.processes.may_listen()
        yield
        await service.worker.stop()

    # Without FastAPI's documentation pages: they load scripts from other servers.
    schemes = [name for name, keys in ((BEARER, service.keys), (ADMIN_BEARER, service.admin_keys)) if keys.digests]
    # And without redirects from paths that end in a slash: they would name the scheme and host of this side of a proxy.
    app = DescribedApp(schemes=schemes, title="Thoughtbubbles", version=VERSION, lifespan=lifespan,
                       docs_url=None, redoc_url=None, redirect_slashes=False)  # fmt: skip
    app.state.service = service
    # Not by `include_router`, whose way to a route is several times as long.
    for router in ROUTERS:
        app.router.routes += router.routes
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(GenerationError, on_generation_error)
    app.add_exception_handler(LoadError, on_load_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(Exception, on_unexpected)
    return _wrapped(app, service)


def _wrapped(app: ASGIApp, service: Service) -> ASGIApp:
    """Return `app` in our middleware. FastAPI's own would not see answers to unexpected errors."""
    settings = service.settings
    app = HeadAsGet(app)
    app = EncodingCheck(app)
    app = BodyLimit(app, settings.max_body_bytes, settings.body_timeout_seconds)
    app = KeyCheck(app, service.keys, KEYLESS | admin.PATHS, service.metrics.rejected)
    app = ConnectionLimit(app, settings.max_connections, service.metrics.rejected)
    if settings.cors_origins:
        # Outside the key check: a browser's preflight request has no key.
        app = CORSMiddleware(app, settings.cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",),
                             expose_headers=EXPOSED_HEADERS)  # fmt: skip
    return Exchanges(app, log_exchange, *service.tracing)
