"""What the routes of one server share."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Self

from fastapi import Depends, Request

from server.engine_thread import Load
from server.loading import load_model
from server.metrics import Metrics
from server.settings import ServerSettings
from server.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Service:
    """One server: its settings, its engine's thread and its numbers."""

    settings: ServerSettings
    """As the operator gave them."""
    worker: Worker
    """Runs the engine."""
    metrics: Metrics
    """Counts."""

    @classmethod
    def create(cls, settings: ServerSettings, load: Load | None = None) -> Self:
        """A server that does not run yet. `load` in place of `settings.checkpoint` gives it another engine."""
        metrics = Metrics()
        worker = Worker(load or partial(load_model, settings), metrics.meter)
        return cls(settings=settings, metrics=metrics, worker=worker)


def _of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(_of)]
"""A route's parameter that is the service it belongs to."""
