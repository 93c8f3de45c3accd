"""What the routes of one server share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from fastapi import Depends, Request

from thoughtbubbles.server.bridge.loading import load_model
from thoughtbubbles.server.bridge.loop import Load, run_engine
from thoughtbubbles.server.bridge.process import run_engine_process
from thoughtbubbles.server.bridge.worker import Worker
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.observe.exchange import Exchange
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.observe.tracing import exporting_to
from thoughtbubbles.server.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class Service:
    """One server: its settings, engine and metrics."""

    settings: ServerSettings
    """The operator's settings."""
    worker: Worker
    """Runs the engine."""
    metrics: Metrics
    """The server's metrics."""
    keys: ApiKeys
    """The accepted API keys; if there are none, requests need no key."""
    admin_keys: ApiKeys
    """The accepted admin keys; if there are none, nothing can be administered."""
    tracing: Sequence[Callable[[Exchange], None]]
    """Functions that export traces of exchanges; empty unless the operator sets otel_endpoint."""

    @classmethod
    def of(cls, request: Request) -> Self:
        """Return the server that has this request."""
        service: Self = request.app.state.service
        return service

    @classmethod
    def create(cls, settings: ServerSettings, load: Load | None = None) -> Self:
        """Return a server that does not run yet. `load` gives it another engine than that of `settings.checkpoint`.

        On other devices than the CPU the engine runs in a process of its own, and `load` is pickled. Raises `OSError`
        or `ValueError` if the file of keys cannot be read or has none, or packages for traces are missing.
        """
        metrics = Metrics(gateway=settings.gateway_metrics)
        tracing = [] if settings.otel_endpoint is None else [exporting_to(settings.otel_endpoint)]
        worker = Worker(
            load or partial(load_model, settings),
            metrics.meter,
            settings.request_timeout_seconds,
            settings.load_wait_seconds,
            run_engine if settings.device == "cpu" else run_engine_process,
        )
        return cls(
            settings=settings,
            metrics=metrics,
            worker=worker,
            keys=_with_file(settings.api_keys, settings.api_keys_file),
            admin_keys=_with_file(settings.admin_keys, settings.admin_keys_file),
            tracing=tracing,
        )


def _with_file(keys: ApiKeys, file: Path | None) -> ApiKeys:
    """Return `keys`, and those of a file."""
    return keys if file is None else keys | ApiKeys.read(file)


async def _service_of(request: Request) -> Service:  # a coroutine: FastAPI calls other functions on a thread
    return Service.of(request)


Serving = Annotated[Service, Depends(_service_of)]
"""The type of a route's parameter that gets the service."""
