"""The event loop's side of the engine: who waits for what, and whether anything can be served."""

import asyncio
import logging
import time
from collections.abc import Sequence

from thoughtbubbles.engine import TokenEvent
from thoughtbubbles.server.bridge.generation import EngineRequest, Generation
from thoughtbubbles.server.bridge.loading import ServedModel
from thoughtbubbles.server.bridge.loop import Load, run_engine
from thoughtbubbles.server.bridge.pacing import Pacing
from thoughtbubbles.server.bridge.thread import EngineThread, Run
from thoughtbubbles.server.observe.meter import Meter
from thoughtbubbles.server.protocol import errors

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long the last step may take at the end."""


class Worker:
    """Hands requests to the engine's thread and its events to their generations. Belongs to the event loop."""

    def __init__(self, load: Load, meter: Meter, request_timeout_seconds: float, run: Run = run_engine) -> None:
        self.draining = False
        """Whether new requests are refused, while the others go on."""
        self.failure: Exception | None = None
        """What ended the engine, in loading or in a step."""
        self.loaded = asyncio.Event()
        """Set once `model` is there."""
        self.failed = asyncio.Event()
        """Set once `failure` is."""
        self.idle = asyncio.Event()
        """Set while no client is being served."""
        self.idle.set()
        self.stuck = False
        """Whether a step, or loading, does not return, at the end or for the watchdog."""
        self._model: ServedModel | None = None
        self._request_timeout_seconds = request_timeout_seconds
        self._generations: dict[str, Generation] = {}  # by request id, while the request runs
        self._names: dict[str, Generation] = {}  # by their own, while one of their requests runs
        self._pacing = Pacing()
        self._thread = EngineThread(load, meter, self, run)

    def start(self) -> None:
        """Begin to load the engine."""
        self._thread.start()

    async def stop(self) -> None:
        """End the engine."""
        self.stuck = not await self._thread.stop(STOP_SECONDS)

    @property
    def model(self) -> ServedModel:
        """The model that is served. `ApiError` 503 while it loads."""
        if self._model is None:
            raise errors.unavailable("starting")
        return self._model

    @property
    def step_seconds(self) -> float:
        """How long the step at hand has been running; 0 between steps."""
        began = self._thread.step_began
        return 0.0 if began is None else time.monotonic() - began

    def unready(self, stall_seconds: float) -> str | None:
        """In one word why nothing can be served now; None when it can. A longer step than `stall_seconds` stalls."""
        if self.failure is not None:
            return "failed"
        if self.draining:
            return "draining"
        if self._model is None:
            return "starting"
        return "stalled" if self.step_seconds > stall_seconds else None

    def submit(self, name: str, requests: Sequence[EngineRequest], arrived: float, client: str = "") -> Generation:
        """Ask the engine for `requests`, all or none of which it takes; `cancel` knows them by `name`.

        They count for the share of the queue that `client` has.

        The request's time runs from `arrived`, on the monotonic clock. `ApiError` when nothing is taken at present;
        that the engine is full, cannot serve these, or took too long, comes as an `ApiError` from the generation.
        """
        if self.failure is not None:
            raise errors.engine_failed()
        if self.draining:
            raise errors.unavailable("draining")
        generation = Generation(name, requests, self._give_up, arrived, client)
        generation.expire(self._request_timeout_seconds, self._time_out)
        self._generations |= dict.fromkeys(generation.unfinished, generation)
        self._names[name] = generation
        self.idle.clear()
        self._thread.admit(generation)
        return generation

    def cancel(self, name: str) -> bool:
        """End the generation of this name, and tell its client so. False when none has it."""
        found = self._names.get(name)
        if found is None:
            return False
        self._end(found, errors.cancelled(), "abort")
        return True

    def cut_off(self) -> None:
        """End every generation, because the server waits no longer."""
        for generation in list(self._names.values()):
            self._end(generation, errors.cut_off(), "abort")

    def abandon(self) -> None:
        """Give the engine up, because its step does not return."""
        self._thread.abandon()
        self.on_failure(TimeoutError(f"a step has not returned for {self.step_seconds:.0f} seconds"))

    def on_loaded(self, model: ServedModel) -> None:
        """Serve from now on."""
        self._model = model
        self.loaded.set()

    def on_events(self, events: Sequence[TokenEvent]) -> None:
        """Hand each event to the generation that waits for it, if it has not been given up since."""
        told = []
        for event in events:
            generation = self._generations.get(event.request_id)
            if generation is None:
                continue
            if event.finish_reason == "error":
                self._end(generation, errors.non_finite_logits(), "error")
                continue
            generation.put(event)
            if event.finish_reason is not None:
                del self._generations[event.request_id]
                if not generation.unfinished:
                    self._forget(generation)
            told.append(generation)
        self._pacing.write(told)

    def on_refusal(self, request_ids: Sequence[str], error: errors.ApiError) -> None:
        """End the generation that these are, which never began; nothing when it has been given up since."""
        generation = self._generations.get(request_ids[0])
        if generation is None:
            return
        self._forget(generation)
        generation.fail(error)

    def on_failure(self, failure: Exception) -> None:
        """End every generation, and serve no more."""
        if self.failure is not None:
            return
        self.failure = failure
        if self._model is not None:  # what went wrong while loading is for whoever waits for it to say
            logger.error("the engine failed", exc_info=failure)
        for generation in list(self._names.values()):
            self._end(generation, errors.engine_failed(), "error")
        self.failed.set()

    def _time_out(self, generation: Generation) -> None:
        if generation.unfinished:
            self._end(generation, errors.timed_out(self._request_timeout_seconds), "timeout")

    def _give_up(self, generation: Generation) -> None:
        self._drop(generation, "abort")

    def _end(self, generation: Generation, error: errors.ApiError, reason: str) -> None:
        """Drop what still runs of it, and tell its client why."""
        self._drop(generation, reason)
        generation.fail(error, reason)

    def _drop(self, generation: Generation, reason: str) -> None:
        if generation.unfinished:
            self._thread.abort(list(generation.unfinished), reason)
            self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        """Drop a generation from those that run, with what is unfinished of it."""
        for request_id in generation.unfinished:
            del self._generations[request_id]
        del self._names[generation.name]
        if not self._names:
            self.idle.set()
