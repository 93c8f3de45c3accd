"""What the routes of one server share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    """One server: its settings, its engine and its numbers."""

    settings: ServerSettings
    """As the operator gave them."""
    worker: Worker
    """Runs the engine."""
    metrics: Metrics
    """Counts."""
    keys: ApiKeys
    """Who may ask."""
    tracing: Sequence[Callable[[Exchange], None]]
    """What makes traces of exchanges: nothing, unless asked."""

    @classmethod
    def create(cls, settings: ServerSettings, load: Load | None = None) -> Self:
        """A server that does not run yet. `load` in place of `settings.checkpoint` gives it another engine.

        Where that runs on another device than the CPU, it does so in a process of its own, and `load` is pickled.
        `OSError` or `ValueError` for a file of keys that cannot be read or has none, or for traces
        without the packages that make them.
        """
        file = settings.api_keys_file
        keys = settings.api_keys if file is None else settings.api_keys | ApiKeys.read(file)
        metrics = Metrics()
        tracing = [] if settings.otel_endpoint is None else [exporting_to(settings.otel_endpoint)]
        worker = Worker(
            load or partial(load_model, settings),
            metrics.meter,
            settings.request_timeout_seconds,
            run_engine if settings.device == "cpu" else run_engine_process,
        )
        return cls(settings=settings, metrics=metrics, worker=worker, keys=keys, tracing=tracing)


async def _of(request: Request) -> Service:  # what is no coroutine would be called on a thread
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(_of)]
"""A route's parameter that is the service it belongs to."""
