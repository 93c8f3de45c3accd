"""The thread that hears of the engine: what happens there is counted, and told to the event loop."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from thoughtbubbles.engine import ClientQueueFull, EngineStats, InvalidRequest, TokenEvent
from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.bridge.loading import ServedModel
from thoughtbubbles.server.bridge.loop import (
    Abort,
    Aborted,
    Accepted,
    Admit,
    Command,
    Commands,
    Load,
    Loaded,
    News,
    Obeyed,
    Refused,
    Stepped,
    Tell,
    run_engine,
)
from thoughtbubbles.server.observe.meter import Meter
from thoughtbubbles.server.protocol import errors

logger = logging.getLogger(__name__)

Run = Callable[[Load, Commands, Tell], None]


class Listener(Protocol):
    """Who is told, on the event loop, what happens."""

    def on_loaded(self, model: ServedModel) -> None:
        """The engine takes commands from now on."""

    def on_events(self, events: Sequence[TokenEvent]) -> None:
        """One step has made these."""

    def on_refusal(self, request_ids: Sequence[str], error: errors.ApiError) -> None:
        """The engine took none of these requests, which are all of a generation."""

    def on_failure(self, failure: Exception) -> None:
        """The engine has ended, in loading or in a step."""


class EngineThread:
    """Runs an engine, on this thread or from it; nothing else touches the engine.

    Commands are carried out between steps, and each step is told in one call, so that neither side waits for the other.
    """

    def __init__(self, load: Load, meter: Meter, listener: Listener, run: Run = run_engine) -> None:
        self.step_began: float | None = None
        """When the step at hand began, on the monotonic clock; None without work. May be read from anywhere."""
        self._load = load
        self._run_engine = run
        self._meter = meter
        self._listener = listener
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load; what happens is told on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self, seconds: float) -> bool:
        """End after the present step, and wait so long for it. False when it has not returned by then."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, 0 if self._abandoned else seconds)
        return not self._thread.is_alive()

    def admit(self, generation: Generation) -> None:
        """Give the engine all of the generation's requests, or none."""
        self._commands.put(Admit(generation.requests, generation.arrived, generation.client))

    def abort(self, request_ids: Sequence[str], reason: str) -> None:
        """Free what these requests hold, and count them under `reason`; nothing more is told of them."""
        self._commands.put(Abort(request_ids, reason))

    def abandon(self) -> None:
        """Count on it no more, because a step does not return. Should it ever, nothing is told of it."""
        self._abandoned = True
        self._meter.fail()

    def _run(self) -> None:
        try:
            self._run_engine(self._load, self._commands, self._hear)
        except Exception as failure:
            self._meter.fail()
            self._tell(self._listener.on_failure, failure)

    def _hear(self, news: News) -> None:
        """Count first, then tell: a client that has its answer finds it in /metrics."""
        if not self._abandoned:
            self._count(news)
            self._pass_on(news)

    def _count(self, news: News) -> None:
        match news:
            case Loaded(model, stats):
                self._meter.load(model, stats)
            case Accepted(request_ids, arrived):
                self._meter.accept(request_ids, arrived)
            case Aborted(request_ids, reason):
                self._meter.abort(request_ids, reason)
            case Obeyed(stats):
                self._publish(stats)
            case Stepped(events, report, stats):
                self._meter.step(events, report)
                self._publish(stats)

    def _pass_on(self, news: News) -> None:
        match news:
            case Loaded(model):
                self._tell(self._listener.on_loaded, model)
            case Refused(request_ids, refusal, stats):
                self._tell(self._listener.on_refusal, request_ids, self._error(refusal, stats))
            case Stepped(events) if events:
                self._tell(self._listener.on_events, events)

    def _publish(self, stats: EngineStats) -> None:
        self._meter.publish(stats)
        working = stats.num_requests_running + stats.num_requests_waiting > 0
        self.step_began = time.monotonic() if working else None

    def _error(self, refusal: Exception, stats: EngineStats) -> errors.ApiError:
        if isinstance(refusal, InvalidRequest):
            return errors.bad_request(str(refusal), refusal.code, refusal.param)
        full = errors.client_queue_full if isinstance(refusal, ClientQueueFull) else errors.queue_full
        return full(str(refusal), self._meter.seconds_to_drain(stats))

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed, nobody is left to be told
            logger.debug("something happened after the event loop's end")
