"""The event loop's side of the engine: the generations, and whether requests can be served."""

import asyncio
import logging
import time
from collections.abc import Sequence

from thoughtbubbles.engine import TokenEvent
from thoughtbubbles.server.bridge.errors import (
    CancelledError,
    EngineFailedError,
    GenerationError,
    LoadError,
    LoadInProgressError,
    RefusedError,
    ServerStoppedError,
    TimeLimitError,
    UnavailableError,
    failure_of,
)
from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.bridge.loop import Load, run_engine
from thoughtbubbles.server.bridge.pacing import Pacing
from thoughtbubbles.server.bridge.thread import EngineThread, Observer, Run
from thoughtbubbles.server.core import EngineRequest, ServedModel

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""Time limit of the last step when the server stops."""


class Worker:
    """Sends requests to the engine's thread, and its events to their generations. Belongs to the event loop."""

    def __init__(
        self,
        load: Load,
        observer: Observer,
        request_timeout_seconds: float,
        load_wait_seconds: float,
        run: Run = run_engine,
        *,
        http_processes: int = 1,
    ) -> None:
        self.draining = False
        """Whether new requests are refused while the running ones finish."""
        self.failure: Exception | None = None
        """The exception that ended the engine, in loading or in a step."""
        self.loaded = asyncio.Event()
        """Set when `model` is available."""
        self.failed = asyncio.Event()
        """Set when `failure` is."""
        self.idle = asyncio.Event()
        """Set while there are no generations."""
        self.idle.set()
        self.stuck = False
        """Whether a step, or loading, hangs when the server stops."""
        self._model: ServedModel | None = None
        self._load: asyncio.Future[ServedModel] | None = None  # the load of weights that is in progress
        self._request_timeout_seconds = request_timeout_seconds
        self._load_wait_seconds = load_wait_seconds
        self._by_request: dict[str, Generation] = {}  # by request id, while the request is unfinished
        self._by_completion: dict[str, Generation] = {}  # by completion id, while one of its requests is unfinished
        self._pacing = Pacing(http_processes)
        self._thread = EngineThread(load, observer, self, run)

    def start(self) -> None:
        """Start loading the engine."""
        self._thread.start()

    async def stop(self) -> None:
        """End the engine."""
        self.stuck = not await self._thread.stop(STOP_SECONDS)

    @property
    def model(self) -> ServedModel:
        """The served model. Raises `UnavailableError` while it loads."""
        if self._model is None:
            raise UnavailableError("starting")
        return self._model

    @property
    def step_began(self) -> float | None:
        """When the current step began, on the monotonic clock; None without work."""
        return self._thread.step_began

    @property
    def step_seconds(self) -> float:
        """How long the current step has been running; 0 between steps."""
        began = self.step_began
        return 0.0 if began is None else time.monotonic() - began

    def unready(self, stall_seconds: float) -> str | None:
        """Return in one word why no request can be served; None if one can. A step over `stall_seconds` is a stall."""
        if self.failure is not None:
            return "failed"
        if self.draining:
            return "draining"
        if self._model is None:
            return "starting"
        return "stalled" if self.step_seconds > stall_seconds else None

    def submit(
        self, completion_id: str, requests: Sequence[EngineRequest], arrived: float, client: str = ""
    ) -> Generation:
        """Send `requests` to the engine, which accepts all or none, and return their generation.

        They count against the queue share of `client`, and their time limit starts at `arrived` on the monotonic clock.
        Raises `GenerationError` if the server accepts no requests; if the engine refuses them or they fail later, the
        generation raises it.
        """
        if self.failure is not None:
            raise EngineFailedError
        if self.draining:
            raise UnavailableError("draining")
        generation = Generation(completion_id, requests, self._abort, arrived, client)
        generation.expire(self._request_timeout_seconds, self._time_out)
        self._by_request |= dict.fromkeys(generation.unfinished, generation)
        self._by_completion[completion_id] = generation
        self.idle.clear()
        self._thread.add(generation)
        return generation

    async def load_weights(self, checkpoint: str) -> ServedModel:
        """Replace the weights by those of a checkpoint, a folder or a hub id. Return the model with them.

        Requests that have started finish with the weights from before, and the others wait. Raises `LoadError` if the
        weights are not replaced, and `GenerationError` if the server does not serve, or stops.
        """
        if self.failure is not None:
            raise EngineFailedError
        if self.draining:
            raise UnavailableError("draining")
        if self._model is None:
            raise UnavailableError("starting")
        if self._load is not None:
            raise LoadInProgressError("the weights of another checkpoint are being loaded")
        load = self._load = asyncio.get_running_loop().create_future()
        self._thread.load_weights(checkpoint, self._load_wait_seconds)
        return await asyncio.shield(load)  # it goes on without the client that asked for it

    def cancel(self, completion_id: str) -> bool:
        """End a generation with `CancelledError`. Return False if none has this id."""
        generation = self._by_completion.get(completion_id)
        if generation is None:
            return False
        self._fail(generation, CancelledError(), "abort")
        return True

    def end_all(self) -> None:
        """End every generation, and the load of weights, with `ServerStoppedError`."""
        self._end_load(ServerStoppedError())
        for generation in list(self._by_completion.values()):
            self._fail(generation, ServerStoppedError(), "abort")

    def abandon(self) -> None:
        """Treat the engine as failed, because its step hangs."""
        self._thread.abandon()
        self.on_failure(TimeoutError(f"a step has not returned for {self.step_seconds:.0f} seconds"))

    def on_loaded(self, model: ServedModel) -> None:
        """Start serving."""
        self._model = model
        self.loaded.set()

    def on_events(self, events: Sequence[TokenEvent]) -> None:
        """Pass each event to its generation, unless that has ended."""
        updated = []
        for event in events:
            generation = self._by_request.get(event.request_id)
            if generation is None:
                continue
            if not generation.weights_version:
                generation.weights_version = self.model.weights_version
            if event.finish_reason == "error":
                self._end_in_error(generation, event)
                continue
            generation.put(event)
            updated.append(generation)
            if event.finish_reason is not None:
                del self._by_request[event.request_id]
                if not generation.unfinished:
                    self._remove(generation)
        self._pacing.write(updated)

    def _end_in_error(self, generation: Generation, event: TokenEvent) -> None:
        if event.text:
            generation.put(event._replace(finish_reason=None, stop_reason=None))
        self._fail(generation, failure_of(event), "error")

    def on_refusal(self, request_ids: Sequence[str], error: RefusedError) -> None:
        """End the generation of these requests, unless that has ended."""
        generation = self._by_request.get(request_ids[0])
        if generation is None:
            return
        self._remove(generation)
        generation.fail(error)

    def on_weights(self, version: str, revision: str | None) -> None:
        """Serve the model with other weights."""
        self._model = self.model.with_weights(version, revision)
        self._end_load(self._model)

    def on_load_ended(self, error: LoadError) -> None:
        """End the load of weights with `error`."""
        self._end_load(error)

    def on_failure(self, failure: Exception) -> None:
        """End every generation, and refuse requests from now on."""
        if self.failure is not None:
            return
        self.failure = failure
        if self._model is not None:  # a failure to load is reported by the command
            logger.error("the engine failed", exc_info=failure)
        self._end_load(EngineFailedError())
        for generation in list(self._by_completion.values()):
            self._fail(generation, EngineFailedError(), "error")
        self.failed.set()

    def _end_load(self, outcome: ServedModel | Exception) -> None:
        """End the load of weights that is in progress, if there is one."""
        load, self._load = self._load, None
        if load is None:
            return
        if isinstance(outcome, Exception):
            load.set_exception(outcome)
            load.exception()  # asyncio logs one that nobody has seen, as after the client's disconnect
        else:
            load.set_result(outcome)

    def _time_out(self, generation: Generation) -> None:
        if generation.unfinished:
            self._fail(generation, TimeLimitError(self._request_timeout_seconds), "timeout")

    def _abort(self, generation: Generation, reason: str = "abort") -> None:
        """Abort the generation's unfinished requests."""
        if generation.unfinished:
            self._thread.abort(list(generation.unfinished), reason)
            self._remove(generation)

    def _fail(self, generation: Generation, error: GenerationError, reason: str) -> None:
        """Abort the generation's unfinished requests, and have it raise `error`."""
        self._abort(generation, reason)
        generation.fail(error, reason)

    def _remove(self, generation: Generation) -> None:
        for request_id in generation.unfinished:
            del self._by_request[request_id]
        del self._by_completion[generation.completion_id]
        if not self._by_completion:
            self.idle.set()
