"""What the routes of one server share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated, Self

from fastapi import Depends, Request

from thoughtbubbles.server.bridge.commands import Commands
from thoughtbubbles.server.bridge.loading import load_model
from thoughtbubbles.server.bridge.loop import Load, Reports, run_engine
from thoughtbubbles.server.bridge.process import Ends, run_engine_process, share_engine
from thoughtbubbles.server.bridge.thread import Observer, Run
from thoughtbubbles.server.bridge.worker import Worker
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.observe.drain_rate import DrainRate
from thoughtbubbles.server.observe.exchange import Exchange
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.observe.tracing import exporting_to
from thoughtbubbles.server.processes.alone import Alone
from thoughtbubbles.server.processes.first import First
from thoughtbubbles.server.processes.link import Link
from thoughtbubbles.server.processes.other import Other
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
    processes: Alone
    """Answers what concerns all HTTP processes of the server."""
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

        On other devices than the CPU, and for several HTTP processes, the engine runs in a process of its own, and
        `load` is pickled. Raises `OSError` or `ValueError` if the file of keys cannot be read or has none, or packages
        for traces are missing.
        """
        metrics = Metrics(gateway=settings.gateway_metrics)
        load = load or partial(load_model, settings)
        if settings.http_processes == 1:
            worker = _worker(
                settings, load, metrics.meter, run_engine if settings.device == "cpu" else run_engine_process
            )
            return cls._of(settings, metrics, worker, Alone(worker, metrics))
        pipes = [Ends.of_new_pipes() for _ in range(1, settings.http_processes)]
        run = partial(run_engine_process, others=[engines for _, engines in pipes])
        worker = _worker(settings, load, metrics.meter, run)
        part = replace(settings, max_connections=ceil(settings.max_connections / settings.http_processes))
        return cls._of(part, metrics, worker, First(worker, metrics, [ends for ends, _ in pipes]))

    @classmethod
    def create_other(cls, settings: ServerSettings, link: Link) -> Self:
        """Return the server of another HTTP process, which has these settings from `settings_of_others`."""
        metrics = Metrics()

        def share(_load: Load, commands: Commands, on_report: Reports) -> None:
            share_engine(link.engine, commands, on_report)

        worker = _worker(settings, partial(load_model, settings), DrainRate(), share)
        return cls._of(settings, metrics, worker, Other(worker, metrics))

    @classmethod
    def _of(cls, settings: ServerSettings, metrics: Metrics, worker: Worker, processes: Alone) -> Self:
        return cls(
            settings=settings,
            metrics=metrics,
            worker=worker,
            processes=processes,
            keys=_with_file(settings.api_keys, settings.api_keys_file),
            admin_keys=_with_file(settings.admin_keys, settings.admin_keys_file),
            tracing=[] if settings.otel_endpoint is None else [exporting_to(settings.otel_endpoint)],
        )

    @property
    def settings_of_others(self) -> ServerSettings:
        """The settings of other HTTP processes: with the keys, since a file may be readable once, as a pipe is."""
        return replace(
            self.settings, api_keys=self.keys, api_keys_file=None, admin_keys=self.admin_keys, admin_keys_file=None
        )


def _worker(settings: ServerSettings, load: Load, observer: Observer, run: Run) -> Worker:
    limits = settings.request_timeout_seconds, settings.load_wait_seconds
    return Worker(load, observer, *limits, run, http_processes=settings.http_processes)


def _with_file(keys: ApiKeys, file: Path | None) -> ApiKeys:
    """Return `keys`, and those of a file."""
    return keys if file is None else keys | ApiKeys.read(file)


async def _service_of(request: Request) -> Service:  # a coroutine: FastAPI calls other functions on a thread
    return Service.of(request)


Serving = Annotated[Service, Depends(_service_of)]
"""The type of a route's parameter that gets the service."""
