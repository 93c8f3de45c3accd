"""The server's thread for the engine or its process. What the engine reports is counted and passed to the event loop.

An engine on this thread reports on it, an engine's process on the event loop.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from thoughtbubbles.engine import EngineStats, TokenEvent
from thoughtbubbles.server.bridge.commands import Abort, Add, Command, Commands, LoadWeights
from thoughtbubbles.server.bridge.errors import LoadError, RefusedError
from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.bridge.loop import (
    CommandsDone,
    Load,
    Loaded,
    LoadEnded,
    Refused,
    Report,
    Reports,
    Stepped,
    WeightsLoaded,
    run_engine,
)
from thoughtbubbles.server.core import ServedModel

logger = logging.getLogger(__name__)

Run = Callable[[Load, Commands, Reports], None]


class Observer(Protocol):
    """Counts what the engine reports, on the thread that gets the reports."""

    def count(self, report: Report) -> None:
        """Count what one report says."""

    def fail(self) -> None:
        """Count all requests that run or wait as failed."""

    def seconds_to_drain(self, stats: EngineStats) -> int:
        """Return about how many seconds the waiting requests wait."""


class Listener(Protocol):
    """Is called on the event loop with what the engine does."""

    def on_loaded(self, model: ServedModel) -> None:
        """Handle that the engine is loaded."""

    def on_events(self, events: Sequence[TokenEvent]) -> None:
        """Handle the events of one step."""

    def on_refusal(self, request_ids: Sequence[str], error: RefusedError) -> None:
        """Handle that the engine refused these requests, which are all of a generation."""

    def on_weights(self, version: str, revision: str | None) -> None:
        """Handle that these weights compute the requests of all events from now on."""

    def on_load_ended(self, error: LoadError) -> None:
        """Handle that a load of weights ended without new ones."""

    def on_failure(self, failure: Exception) -> None:
        """Handle that loading or a step raised, which ends the engine."""


class EngineThread:
    """Runs an engine on this thread, or the process that has it; nothing else touches the engine.

    Commands are executed between steps, and a step is reported in one call, so that neither side waits for the other.
    """

    def __init__(self, load: Load, observer: Observer, listener: Listener, run: Run = run_engine) -> None:
        self.step_began: float | None = None
        """When the current step began, on the monotonic clock; None without work. Any thread may read it."""
        self._load = load
        self._run_engine = run
        self._observer = observer
        self._listener = listener
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start loading; the listener is called on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loops_thread = threading.get_ident()
        self._thread.start()

    async def stop(self, seconds: float) -> bool:
        """End the engine after the current step. Return False if it takes longer than `seconds`."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, 0 if self._abandoned else seconds)
        return not self._thread.is_alive()

    def add(self, generation: Generation) -> None:
        """Send the engine all of the generation's requests; it accepts all or none."""
        self._commands.put(Add(generation.requests, generation.arrived, generation.client))

    def abort(self, request_ids: Sequence[str], reason: str) -> None:
        """Abort these requests and count them under `reason`; no more events are reported for them."""
        self._commands.put(Abort(request_ids, reason))

    def load_weights(self, checkpoint: str, wait_seconds: float) -> None:
        """Load the weights of a checkpoint. No load may be in progress. `wait_seconds` as in `LoadWeights`."""
        self._commands.put(LoadWeights(checkpoint, wait_seconds))

    def abandon(self) -> None:
        """Ignore the engine from now on, because a step hangs."""
        self._abandoned = True
        self._observer.fail()

    def _run(self) -> None:
        try:
            self._run_engine(self._load, self._commands, Reports(self._loop, self._on_report))
        except Exception as failure:
            self._observer.fail()
            self._call(self._listener.on_failure, failure)

    def _on_report(self, report: Report) -> None:
        """Count the report, then pass it on: a client that has its answer finds it in /metrics."""
        if not self._abandoned:
            self._observer.count(report)
            self._pass_on(report)

    def _pass_on(self, report: Report) -> None:
        match report:
            case Loaded(model):
                self._call(self._listener.on_loaded, model)
            case Refused(request_ids, refusal, stats):
                error = RefusedError(refusal, self._observer.seconds_to_drain(stats))
                self._call(self._listener.on_refusal, request_ids, error)
            case WeightsLoaded(version, revision, stats):
                self._note_work(stats)
                self._call(self._listener.on_weights, version, revision)
            case LoadEnded(error, stats):
                self._note_work(stats)
                self._call(self._listener.on_load_ended, error)
            case CommandsDone(stats):
                self._note_work(stats)
            case Stepped(events, _, stats):
                self._note_work(stats)
                if events:
                    self._call(self._listener.on_events, events)

    def _note_work(self, stats: EngineStats) -> None:
        working = stats.num_requests_running + stats.num_requests_waiting > 0
        self.step_began = time.monotonic() if working else None

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        if threading.get_ident() == self._loops_thread:
            callback(*arguments)
            return
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the event loop is closed
            logger.debug("the engine reported after the event loop closed")
