"""The only HTTP process of a server."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prometheus_client import generate_latest

from thoughtbubbles.server.bridge.worker import Worker
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.processes.link import Link
from thoughtbubbles.server.settings import ServerSettings

RunOther = Callable[[ServerSettings, socket.socket, Link], None]
"""What another process runs, with its settings, its listening socket and its link to the rest."""


class Alone:
    """Answers for the whole server what concerns all of its processes: here it is the only one."""

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        self.broken = asyncio.Event()
        """Set when another process has ended that should not have."""
        self._worker = worker
        self._metrics = metrics

    @asynccontextmanager
    async def running(
        self, _run_other: RunOther, _settings: ServerSettings, _listener: socket.socket
    ) -> AsyncIterator[None]:
        """Have the others run inside the block."""
        yield

    async def may_listen(self) -> None:
        """Wait until this process may accept connections."""

    async def announces(self) -> bool:
        """Wait until all processes listen. Return whether this one says so."""
        return True

    def drain(self, seconds: float) -> None:
        """Have the others refuse new requests, and end when running ones have finished, or after `seconds`."""

    async def end(self, at_once: asyncio.Event) -> None:
        """Wait until the others have ended; those that run are cut off when `at_once` is set."""

    def unready(self) -> str | None:
        """Return in one word what the other processes are not ready for; None if they are."""
        return None

    async def cancel(self, completion_id: str) -> bool:
        """End a generation, in whichever process. Return False if none has this id."""
        return self._worker.cancel(completion_id)

    async def load_weights(self, checkpoint: str) -> ServedModel:
        """Replace the weights as `Worker.load_weights`; one load at a time in all processes."""
        return await self._worker.load_weights(checkpoint)

    async def scrape(self) -> bytes:
        """Return the metrics of the whole server in Prometheus' text format."""
        return generate_latest(self._metrics.registry)
