"""One client request while the engine works on it, as the event loop sees it."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from thoughtbubbles.engine import RequestUsage, TokenEvent
from thoughtbubbles.server.bridge.errors import GenerationError
from thoughtbubbles.server.core import EngineRequest


@dataclass(eq=False)
class Generation:
    """The engine requests of one client request: an iterator over their events, in the order they were made.

    Each iteration returns all pending events, so a slow reader gets more at a time; none only after `remind_every`. It
    belongs to the event loop. Iterate inside `with`: leaving the block aborts unfinished requests, so that their pages
    are free after the current step when a client disconnects.
    """

    completion_id: str
    """The completion's id, which the client sees; unique in this process."""
    requests: Sequence[EngineRequest]
    """One for each prompt and choice."""
    abort: Callable[[Self], None]
    """Called once if the block is left while requests are `unfinished`."""
    arrived: float = field(default_factory=time.monotonic)
    """When the client's request arrived, on the monotonic clock."""
    client: str = ""
    """The client whose share of the queue its requests count against."""
    weights_version: str = ""
    """The weights that compute all its requests; "" until the first event."""

    def __post_init__(self) -> None:
        self.unfinished = dict.fromkeys(request.request_id for request in self.requests)
        """The ids of unfinished requests, in order."""
        self.usages: list[RequestUsage] = []
        """The usage of each request that the engine finished, in the order they finished."""
        self.finish_reasons: list[str] = []
        """Why requests ended: one for each that the engine finished, one for all that were aborted together."""
        self._pending: list[TokenEvent] = []
        self._started = False  # whether there has been an event
        self._error: GenerationError | None = None
        self._readable = asyncio.Event()  # whether the reader is to read pending events or the error
        self._expiry: asyncio.TimerHandle | None = None
        self._reminder: asyncio.TimerHandle | None = None

    def expire(self, seconds: float, end: Callable[[Self], None]) -> None:
        """Call `end` if the generation is not closed `seconds` after its arrival."""
        if math.isfinite(seconds):
            left = self.arrived + seconds - time.monotonic()
            self._expiry = asyncio.get_running_loop().call_later(left, end, self)

    def remind_every(self, seconds: float) -> None:
        """Wake the reader whenever so many seconds have passed, even if no events are pending."""
        if math.isfinite(seconds):
            self._reminder = asyncio.get_running_loop().call_later(seconds, self._remind, seconds)

    def _remind(self, seconds: float) -> None:
        self._readable.set()
        self.remind_every(seconds)

    def put(self, event: TokenEvent) -> None:
        """Queue the next event of a request: the first event and last events wake the reader, others need `wake`."""
        self._pending.append(event)
        if self._started and event.finish_reason is None:
            return
        self._started = True
        self._readable.set()
        if event.finish_reason is not None:
            assert event.usage is not None  # the last event of every request carries it
            self.unfinished.pop(event.request_id, None)
            self.usages.append(event.usage)
            self.finish_reasons.append(event.finish_reason)

    def wake(self) -> None:
        """Wake the reader if events are pending."""
        if self._pending:
            self._readable.set()

    def fail(self, error: GenerationError, reason: str | None = None) -> None:
        """End all requests with `error`, which the iterator raises after the pending events.

        `reason` is their finish reason; None if they never started.
        """
        self.unfinished.clear()
        self.finish_reasons += [] if reason is None else [reason]
        self._error = error
        self._readable.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[TokenEvent]:
        if not self._pending and self._error is None:
            if not self.unfinished:
                raise StopAsyncIteration
            await self._readable.wait()
        self._readable.clear()
        if not self._pending and self._error is not None:
            raise self._error
        events, self._pending = self._pending, []
        return events

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort unfinished requests. Does nothing if there are none, or when called again."""
        for timer in (self._expiry, self._reminder):
            if timer is not None:
                timer.cancel()
        if self.unfinished:
            self.abort(self)
            self.unfinished.clear()
            self.finish_reasons.append("abort")
