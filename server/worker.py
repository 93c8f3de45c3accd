"""The engine's own thread: the event loop sends commands and gets events, and neither waits for the other."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from engine import Engine, InvalidRequest, QueueFull, TokenEvent
from server import errors
from server.generation import EngineRequest, Generation
from server.loading import ServedModel
from server.meter import Meter

logger = logging.getLogger(__name__)

Command = Callable[[Engine], None]


class Worker:
    """Loads a model and runs its engine, on one thread; everything public is called on the event loop.

    The engine belongs to the thread alone. What the thread tells travels as one call per step through the loop's
    `call_soon_threadsafe`; what it is told travels through a queue that it empties between steps.
    """

    def __init__(self, load: Callable[[], tuple[Engine, ServedModel]], meter: Meter) -> None:
        self._load = load
        self._meter = meter
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._generations: dict[str, Generation] = {}
        self._model: ServedModel | None = None
        self._step_began: float | None = None
        self.loaded = asyncio.Event()
        """Set once `model` is there."""
        self.failed = asyncio.Event()
        """Set once `failure` is."""
        self.idle = asyncio.Event()
        """Set while no client is being served."""
        self.idle.set()
        self.draining = False
        self.failure: Exception | None = None
        """What ended the thread, if something did: while loading (`model` was never there) or in a step."""

    # On the event loop.

    def start(self) -> None:
        """Begin to load, on the running event loop's behalf."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 (a thread cannot be cancelled)
        """End the thread after its present step, waiting `timeout` seconds for it."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, timeout)

    @property
    def model(self) -> ServedModel:
        """The model that is served. `ApiError` 503 while it loads."""
        if self._model is None:
            raise errors.unavailable("starting")
        return self._model

    def unready(self, stall_seconds: float) -> str | None:
        """In one word why nothing can be served now; None when it can. A longer step than `stall_seconds` stalls."""
        began = self._step_began
        if self.failure is not None:
            return "failed"
        if self.draining:
            return "draining"
        if self._model is None:
            return "starting"
        return "stalled" if began is not None and time.monotonic() - began > stall_seconds else None

    def submit(self, name: str, requests: Sequence[EngineRequest]) -> Generation:
        """Ask the engine for `requests`, all or none of which it takes; `cancel` knows them by `name`.

        `ApiError` when it takes nothing at present; that it is full, or that it cannot serve these, comes as an
        `ApiError` from the generation.
        """
        if self.failure is not None:
            raise errors.engine_failed()
        if self.draining:
            raise errors.unavailable("draining")
        generation = Generation(name, requests, self._give_up)
        self._generations |= dict.fromkeys(generation.unfinished, generation)
        self.idle.clear()
        self._commands.put(lambda engine: self._admit(engine, generation))
        return generation

    def cancel(self, name: str) -> bool:
        """End the generation of this name, and tell its client so. False when none has it."""
        found = next((each for each in self._generations.values() if each.name == name), None)
        if found is None:
            return False
        self._give_up(found)
        found.fail(errors.cancelled())
        return True

    def _forget(self, request_id: str) -> bool:
        """Drop a request from the registry. False when it was not in it."""
        known = self._generations.pop(request_id, None) is not None
        if not self._generations:
            self.idle.set()
        return known

    def _give_up(self, generation: Generation) -> None:
        left = [request_id for request_id in generation.unfinished if self._forget(request_id)]
        if left:
            self._commands.put(lambda engine: self._abort(engine, left))

    def _deliver(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            generation = self._generations.get(event.request_id)
            if generation is None:  # given up since
                continue
            if event.finish_reason is not None:
                self._forget(event.request_id)
            generation.put(event)

    def _refuse(self, generation: Generation, error: errors.ApiError) -> None:
        for request_id in generation.unfinished:
            self._forget(request_id)
        generation.fail(error)

    def _on_loaded(self, model: ServedModel) -> None:
        self._model = model
        self.loaded.set()

    def _on_failure(self, failure: Exception) -> None:
        self.failure = failure
        if self._model is not None:  # what went wrong while loading is for whoever waits for it to say
            logger.error("the engine failed", exc_info=failure)
        for generation in set(self._generations.values()):
            self._refuse(generation, errors.engine_failed())
        self.failed.set()

    # On the engine's thread.

    def _run(self) -> None:
        try:
            engine, model = self._load()
            self._meter.load(model, engine.stats())
            self._post(self._on_loaded, model)
            while self._obey(engine):
                self._step(engine)
        except Exception as failure:
            self._meter.fail()
            self._post(self._on_failure, failure)

    def _obey(self, engine: Engine) -> bool:
        """Carry out the commands that wait; with nothing to compute, sleep until one comes. False means stop."""
        while not self._commands.empty() or not engine.has_work:
            command = self._commands.get()
            if command is None:
                return False
            command(engine)
            self._meter.publish(engine.stats())
        return True

    def _step(self, engine: Engine) -> None:
        self._step_began = time.monotonic()
        events = engine.step()
        self._step_began = None
        # Counted before they are told: a client that has its answer finds it in /metrics.
        self._meter.step(events, engine.last_step)
        self._meter.publish(engine.stats())
        if events:
            self._post(self._deliver, events)

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
        self._post(self._refuse, generation, error)

    def _abort(self, engine: Engine, request_ids: Sequence[str]) -> None:
        self._meter.abort([each for each in request_ids if engine.abort(each)])

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            logger.debug("an event of the engine came after the event loop's end")
