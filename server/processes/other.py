"""Another HTTP process: it serves connections of its own, and the first says when it ends."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from thoughtbubbles.server.bridge.errors import EngineFailedError, UnavailableError
from thoughtbubbles.server.bridge.worker import Worker
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.processes.alone import Alone
from thoughtbubbles.server.processes.channel import Channel
from thoughtbubbles.server.processes.questions import (
    Cancel,
    Count,
    Drain,
    End,
    Listening,
    LoadCheckpoint,
    Question,
    Scrape,
)


class Other(Alone):
    """Asks the first process what it cannot answer alone."""

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        super().__init__(worker, metrics)
        self.stop = asyncio.Event()
        """Set when the process is to drain and end."""
        self.stop_at_once = asyncio.Event()
        """Set when it is to end at once."""

    @asynccontextmanager
    async def connected(self, first: socket.socket) -> AsyncIterator[None]:
        """Have a channel to the first process inside the block."""
        self._first = await Channel.open(first, self._answer)
        try:
            yield
        finally:
            self._first.close()

    async def may_listen(self) -> None:
        """Wait for the model: until then the first answers that the server is starting."""
        tasks = [asyncio.create_task(event.wait()) for event in (self._worker.loaded, self._worker.failed, self.stop)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def announces(self) -> bool:
        """Report to the first that this process listens. The first announces it."""
        await self._first.ask(Listening())
        return False

    async def cancel(self, completion_id: str) -> bool:
        """End a generation here, or ask the first."""
        return self._worker.cancel(completion_id) or await self._first.ask(Cancel(completion_id))

    async def load_weights(self, checkpoint: str) -> ServedModel:
        """Have the first replace the weights."""
        if self._worker.failure is not None:
            raise EngineFailedError
        if self._worker.draining:
            raise UnavailableError("draining")
        version, revision = await self._first.ask(LoadCheckpoint(checkpoint))
        return self._worker.model.with_weights(version, revision)

    async def scrape(self) -> bytes:
        """Return the metrics that the first has."""
        text: bytes = await self._first.ask(Scrape())
        return text

    async def _answer(self, question: Question) -> object:
        match question:
            case Count():
                return self._metrics.own()
            case Cancel(completion_id):
                return self._worker.cancel(completion_id)
            case Drain():
                self.stop.set()
            case End():
                self.stop.set()
                self.stop_at_once.set()
        return None
