"""The thread that the engine lives on: commands come in through a queue, what happens goes out to the event loop."""

import asyncio
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from engine import Engine, InvalidRequest, QueueFull, TokenEvent
from server import errors
from server.generation import Generation
from server.loading import ServedModel
from server.meter import Meter

logger = logging.getLogger(__name__)

Load = Callable[[], tuple[Engine, ServedModel]]
Command = Callable[[Engine], None]


class Listener(Protocol):
    """Who is told, on the event loop, what happens on the thread."""

    def on_loaded(self, model: ServedModel) -> None:
        """The engine takes commands from now on."""

    def on_events(self, events: Sequence[TokenEvent]) -> None:
        """One step has made these."""

    def on_refusal(self, generation: Generation, error: errors.ApiError) -> None:
        """The engine took none of the generation's requests."""

    def on_failure(self, failure: Exception) -> None:
        """The thread has ended, in loading or in a step."""


class EngineThread:
    """Loads an engine and steps it while it has work; nothing else touches the engine.

    Commands are carried out between steps, and each step is told in one call, so that neither side waits for the other.
    """

    def __init__(self, load: Load, meter: Meter, listener: Listener) -> None:
        self.step_began: float | None = None
        """When the step at hand began, on the monotonic clock; None between steps. May be read from anywhere."""
        self._load = load
        self._meter = meter
        self._listener = listener
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
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
        self._commands.put(lambda engine: self._admit(engine, generation))

    def abort(self, request_ids: Sequence[str], reason: str) -> None:
        """Free what these requests hold, and count them under `reason`; nothing more is told of them."""
        self._commands.put(lambda engine: self._abort(engine, request_ids, reason))

    def abandon(self) -> None:
        """Count on it no more, because a step does not return. Should it ever, nothing is told of it."""
        self._abandoned = True
        self._meter.fail()

    def _run(self) -> None:
        try:
            engine, model = self._load()
            gc.freeze()  # what has been loaded stays: to look through it for garbage takes as long as many steps
            self._meter.load(model, engine.stats())
            self._tell(self._listener.on_loaded, model)
            while self._obey(engine):
                self._step(engine)
                if self._abandoned:
                    return
        except Exception as failure:
            self._meter.fail()
            self._tell(self._listener.on_failure, failure)

    def _obey(self, engine: Engine) -> bool:
        """Carry out the commands that wait; with nothing to compute, sleep until one comes. False means stop."""
        while not self._commands.empty() or not engine.has_work:
            command = self._commands.get()
            if command is None:
                return False
            command(engine)
            if self._commands.empty():  # one census for all that came together, as clients do
                self._meter.publish(engine.stats())
        return True

    def _step(self, engine: Engine) -> None:
        self.step_began = time.monotonic()
        events = engine.step()
        self.step_began = None
        if self._abandoned:
            return
        # Counted before they are told: a client that has its answer finds it in /metrics.
        self._meter.step(events, engine.last_step)
        self._meter.publish(engine.stats())
        if events:
            self._tell(self._listener.on_events, events)

    def _admit(self, engine: Engine, generation: Generation) -> None:
        added: list[str] = []
        try:
            for request in generation.requests:
                engine.add(request.request_id, request.prompt, request.params)
                added.append(request.request_id)
        except InvalidRequest as refusal:
            error = errors.bad_request(str(refusal), refusal.code, refusal.param)
        except QueueFull as refusal:
            error = errors.queue_full(str(refusal), self._meter.seconds_to_drain(engine.stats()))
        else:
            self._meter.accept(added, generation.arrived)
            return
        for request_id in added:
            engine.abort(request_id)
        self._tell(self._listener.on_refusal, generation, error)

    def _abort(self, engine: Engine, request_ids: Sequence[str], reason: str) -> None:
        self._meter.abort([request_id for request_id in request_ids if engine.abort(request_id)], reason)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed, nobody is left to be told
            logger.debug("something happened after the event loop's end")
