"""The event loop's side of the engine: who waits for what, and whether anything can be served."""

import asyncio
import logging
import time
from collections.abc import Sequence

from engine import TokenEvent
from server import errors
from server.engine_thread import EngineThread, Load
from server.generation import EngineRequest, Generation
from server.loading import ServedModel
from server.meter import Meter

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long the last step may take at the end."""


class Worker:
    """Hands requests to the engine's thread and its events to their generations. Belongs to the event loop."""

    def __init__(self, load: Load, meter: Meter) -> None:
        self.draining = False
        """Whether new requests are refused, while the others go on."""
        self.failure: Exception | None = None
        """What ended the engine's thread, in loading or in a step."""
        self.loaded = asyncio.Event()
        """Set once `model` is there."""
        self.failed = asyncio.Event()
        """Set once `failure` is."""
        self.idle = asyncio.Event()
        """Set while no client is being served."""
        self.idle.set()
        self._model: ServedModel | None = None
        self._generations: dict[str, Generation] = {}  # by request id, while the request runs
        self._thread = EngineThread(load, meter, self)

    def start(self) -> None:
        """Begin to load the engine."""
        self._thread.start()

    async def stop(self) -> None:
        """End the engine's thread."""
        await self._thread.stop(STOP_SECONDS)

    @property
    def model(self) -> ServedModel:
        """The model that is served. `ApiError` 503 while it loads."""
        if self._model is None:
            raise errors.unavailable("starting")
        return self._model

    def unready(self, stall_seconds: float) -> str | None:
        """In one word why nothing can be served now; None when it can. A longer step than `stall_seconds` stalls."""
        began = self._thread.step_began
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
        self._thread.admit(generation)
        return generation

    def cancel(self, name: str) -> bool:
        """End the generation of this name, and tell its client so. False when none has it."""
        found = next((each for each in self._generations.values() if each.name == name), None)
        if found is None:
            return False
        self._give_up(found)
        found.fail(errors.cancelled())
        return True

    def on_loaded(self, model: ServedModel) -> None:
        """Serve from now on."""
        self._model = model
        self.loaded.set()

    def on_events(self, events: Sequence[TokenEvent]) -> None:
        """Hand each event to the generation that waits for it, if it has not been given up since."""
        for event in events:
            generation = self._generations.get(event.request_id)
            if generation is None:
                continue
            if event.finish_reason is not None:
                self._forget(event.request_id)
            generation.put(event)

    def on_refusal(self, generation: Generation, error: errors.ApiError) -> None:
        """End a generation that never began."""
        for request_id in generation.unfinished:
            self._forget(request_id)
        generation.fail(error)

    def on_failure(self, failure: Exception) -> None:
        """End every generation, and serve no more."""
        self.failure = failure
        if self._model is not None:  # what went wrong while loading is for whoever waits for it to say
            logger.error("the engine failed", exc_info=failure)
        for generation in set(self._generations.values()):
            self.on_refusal(generation, errors.engine_failed())
        self.failed.set()

    def _give_up(self, generation: Generation) -> None:
        left = [request_id for request_id in generation.unfinished if self._forget(request_id)]
        if left:
            self._thread.abort(left)

    def _forget(self, request_id: str) -> bool:
        """Drop a request from those that run. False when it was not among them."""
        known = self._generations.pop(request_id, None) is not None
        if not self._generations:
            self.idle.set()
        return known
