"""The first HTTP process: it gets the signals, starts the others and the engine, and counts."""

import asyncio
import atexit
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing.context import SpawnProcess

from thoughtbubbles.server.bridge.process import CONTEXT, Ends, start_process
from thoughtbubbles.server.bridge.worker import Worker
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.processes.alone import Alone, RunOther
from thoughtbubbles.server.processes.channel import Channel
from thoughtbubbles.server.processes.link import Link
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
from thoughtbubbles.server.settings import ServerSettings
from thoughtbubbles.server.sockets import beside

logger = logging.getLogger(__name__)

COUNT_SECONDS = 1.0
"""How often another process is asked for its counts, and how long a scrape waits for them."""
HUNG_SECONDS = 10.0
"""How long another process may take for an answer."""
MISSES = 3
"""A process that has missed so many in a row is killed: the engine waits for it to read. One may be missed because all
processes were stopped for a while, as a container is."""
END_SECONDS = 5.0
"""How long another process may take to end, beyond the time for requests that run."""


class First(Alone):
    """Starts the others, and ends the server if one of them ends before."""

    def __init__(self, worker: Worker, metrics: Metrics, ends: Sequence[Ends]) -> None:
        """`ends` are those of each other process to the engine."""
        super().__init__(worker, metrics)
        self._ends = ends
        self._others: list[_Other] = []
        self._ending = False
        self._deadline = 0.0

    @asynccontextmanager
    async def running(
        self, run_other: RunOther, settings: ServerSettings, listener: socket.socket
    ) -> AsyncIterator[None]:
        """Start a process for each of the pipes; leaving the block, kill those that are left."""
        tasks = list[asyncio.Task[None]]()
        try:
            for number, ends in enumerate(self._ends, start=1):
                with beside(listener) as listening:
                    other = await self._start(number, partial(run_other, settings, listening), ends)
                self._others.append(other)
                tasks += [asyncio.create_task(self._count(other)), asyncio.create_task(self._await_end(other))]
            yield
        finally:
            for task in tasks:
                task.cancel()
            for other in self._others:
                other.kill()

    async def _start(self, number: int, run: Callable[[Link], None], ends: Ends) -> "_Other":
        here, there = socket.socketpair()
        with there:
            process = CONTEXT.Process(target=run, args=(Link(ends, there),), name=f"HTTP {number}", daemon=True)
            start_process(process)
        ends.close()
        atexit.register(process.kill)  # before the interpreter's own exit, which waits for it
        listens = asyncio.Event()
        return _Other(number, process, await Channel.open(here, partial(self._answer, listens)), listens)

    async def announces(self) -> bool:
        """Wait until all others listen, too."""
        for other in self._others:
            await other.listens.wait()
        return True

    def drain(self, seconds: float) -> None:
        """Have the others drain, and record when they must have ended."""
        self._ending = True
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._send_all(Drain())

    async def end(self, at_once: asyncio.Event) -> None:
        """Wait for the others until `at_once` is set or the time is up, and then for some seconds more."""
        loop = asyncio.get_running_loop()
        self._ending = True
        ended, cut = asyncio.create_task(self._all_end()), asyncio.create_task(at_once.wait())
        left = max(0.0, self._deadline - loop.time())
        await asyncio.wait([ended, cut], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            self._send_all(End())
            await asyncio.wait([ended], timeout=END_SECONDS)
        cut.cancel()
        ended.cancel()

    def unready(self) -> str | None:
        """Return `starting` until all others listen: else the first connections would all be this process's."""
        return None if len(self._listening()) == len(self._others) else "starting"

    async def cancel(self, completion_id: str) -> bool:
        """End a generation here or in another process."""
        if self._worker.cancel(completion_id):
            return True
        asked = (other.channel.ask(Cancel(completion_id)) for other in self._listening())
        return True in await asyncio.gather(*asked, return_exceptions=True)

    async def scrape(self) -> bytes:
        """Return the metrics, with the newest counts of the others."""
        if counting := [asyncio.create_task(self._read_counts(other)) for other in self._listening()]:
            await asyncio.wait(counting, timeout=COUNT_SECONDS)
        return await super().scrape()

    async def _answer(self, listens: asyncio.Event, question: Question) -> object:
        match question:
            case Listening():
                listens.set()
            case Scrape():
                return await self.scrape()
            case Cancel(completion_id):
                return await self.cancel(completion_id)
            case LoadCheckpoint(checkpoint):
                model = await self.load_weights(checkpoint)
                return model.weights_version, model.revision
        return None

    async def _count(self, other: "_Other") -> None:
        """Ask a process for its counts now and then; kill it if it does not answer."""
        await other.listens.wait()
        missed = 0
        while missed < MISSES:
            try:
                async with asyncio.timeout(HUNG_SECONDS):
                    await self._read_counts(other)
                missed = 0
            except TimeoutError:
                missed += 1
            await asyncio.sleep(COUNT_SECONDS)
        logger.error("HTTP process %d does not answer", other.number)
        other.process.kill()

    async def _read_counts(self, other: "_Other") -> None:
        with suppress(ConnectionError):
            self._metrics.others[other.number] = await other.channel.ask(Count())

    async def _await_end(self, other: "_Other") -> None:
        await other.channel.closed()
        await asyncio.to_thread(other.process.join)
        other.ended.set()
        if not self._ending and self._worker.failure is None:
            logger.error("HTTP process %d ended with %s: the server ends, too", other.number, other.process.exitcode)
            self.broken.set()

    async def _all_end(self) -> bool:
        return all([await other.ended.wait() for other in self._others])

    def _listening(self) -> list["_Other"]:
        return [other for other in self._others if other.listens.is_set()]

    def _send_all(self, what: Drain | End) -> None:
        """Send to those that listen, and kill the others: they have no clients, and may read nothing for a while."""
        for other in self._others:
            if other.listens.is_set():
                other.send(what)
            else:
                other.process.kill()


class _Other:
    """Another process, as the first sees it."""

    def __init__(self, number: int, process: SpawnProcess, channel: Channel, listens: asyncio.Event) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        self.listens = listens
        self.ended = asyncio.Event()
        self._sending = set[asyncio.Task[None]]()

    def send(self, what: Drain | End) -> None:
        """Send it a message, and wait for no answer."""
        task = asyncio.create_task(self._send(what))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, what: Drain | End) -> None:
        with suppress(ConnectionError):
            await self.channel.ask(what)

    def kill(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.channel.close()
        atexit.unregister(self.process.kill)
