"""One replica: the application of `thoughtbubbles serve` and its engine, in an actor of Ray Serve."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

import uvicorn
from prometheus_client.core import Metric
from ray import serve
from starlette.types import Message
from uvicorn.lifespan.on import LifespanOn

from deploy.replicas.exchange import HttpRequest, answers
from deploy.replicas.metrics import labelled
from thoughtbubbles.server.app import create_app
from thoughtbubbles.server.observe.logs import writing
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings

MESSAGES_A_SECOND = 1000
"""The most parts of streams that a replica sends in a second.

Each costs Ray's proxy and the ingress a millisecond together, however many tokens it has: with 64 clients, one for each
token would keep a GPU waiting.
"""


class Replica:
    """Answers requests from the ingress. Serve calls its public methods, and `__del__` after the last answer."""

    async def __init__(self, settings: ServerSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Load the engine. Raises the error of a wrong setting or checkpoint."""
        self._running = 0
        self._logging = ExitStack()
        self._logging.enter_context(writing(settings.log_format))
        self._service = Service.create(settings)
        self._app = create_app(self._service)
        self._lifespan = LifespanOn(uvicorn.Config(self._app, lifespan="on", log_config=None))
        await self._lifespan.startup()
        worker = self._service.worker
        waits = [asyncio.create_task(event.wait()) for event in (worker.loaded, worker.failed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if worker.failure is not None:
            raise worker.failure

    async def answer(self, *_beginning: object, request: HttpRequest) -> AsyncGenerator[Message, None]:
        """Yield the ASGI messages that answer `request`. Only the router reads the beginning of its prompt."""
        self._running += 1
        try:
            async with aclosing(answers(self._app, request, self._pause)) as messages:
                async for message in messages:
                    yield message
        finally:
            self._running -= 1

    async def whole_answer(self, request: HttpRequest) -> list[Message]:
        """Return all ASGI messages that answer `request`."""
        return [message async for message in answers(self._app, request, self._pause)]

    async def metrics(self) -> list[Metric]:
        """Return the metrics of this replica, labelled with its id."""
        return labelled(self._service.metrics.registry.collect(), serve.get_replica_context().replica_id.unique_id)

    async def check_health(self) -> None:
        """Raise if the engine has failed or hangs; Serve then replaces the replica."""
        reason = self._service.worker.unready(self._service.settings.watchdog_seconds)
        if reason in {"failed", "stalled"}:
            raise RuntimeError(f"the engine has {reason}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the autoscaler reads beside Serve's own count of requests."""
        snapshot = self._service.metrics.meter.snapshot
        return {} if snapshot is None else {"num_requests_waiting": float(snapshot.stats.num_requests_waiting)}

    def _pause(self) -> float:
        return self._running / MESSAGES_A_SECOND

    async def __del__(self) -> None:
        await self._lifespan.shutdown()
        self._logging.close()
