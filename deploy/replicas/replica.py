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
    """Answers what the ingress hands it. Serve calls what is public here, and `__del__` once all is answered."""

    async def __init__(self, settings: ServerSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ready once the engine is loaded. Raises whatever the settings or the checkpoint are refused for."""
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
        """The ASGI messages that answer `request`, as they come. How its prompt begins is for the router alone."""
        self._running += 1
        try:
            async with aclosing(answers(self._app, request, self._pause)) as messages:
                async for message in messages:
                    yield message
        finally:
            self._running -= 1

    async def whole_answer(self, request: HttpRequest) -> list[Message]:
        """The same, all at once."""
        return [message async for message in answers(self._app, request, self._pause)]

    async def metrics(self) -> list[Metric]:
        """What the replica's own /metrics tells, with its name."""
        return labelled(self._service.metrics.registry.collect(), serve.get_replica_context().replica_id.unique_id)

    async def check_health(self) -> None:
        """Raise when nothing more can come of this replica; Serve then replaces it."""
        reason = self._service.worker.unready(self._service.settings.watchdog_seconds)
        if reason in {"failed", "stalled"}:
            raise RuntimeError(f"the engine has {reason}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaler is told of this replica beside Serve's own count of its requests."""
        snapshot = self._service.metrics.meter.snapshot
        return {} if snapshot is None else {"num_requests_waiting": float(snapshot.stats.num_requests_waiting)}

    def _pause(self) -> float:
        return self._running / MESSAGES_A_SECOND

    async def __del__(self) -> None:
        await self._lifespan.shutdown()
        self._logging.close()
