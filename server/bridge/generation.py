"""One client's request while the engine works on it, as the event loop sees it."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from thoughtbubbles.engine import RequestUsage, SamplingParams, TokenEvent
from thoughtbubbles.server.protocol.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One sequence for the engine: one prompt and one choice of it."""

    request_id: str
    """Unique in this process."""
    prompt: Sequence[int]
    """Token ids, at least one."""
    params: SamplingParams
    """How to go on from there."""


@dataclass(eq=False)
class Generation:
    """The engine requests of one client request: an iterator over their events, in the order they were made.

    Each turn brings all that have come since the last, at least one: who falls behind reads more at a time. Lives on
    the event loop. Whoever iterates does so inside `with`: leaving the block gives up what still runs, so that a client
    which goes away holds no page of the cache beyond the step at hand.
    """

    name: str
    """The client request's id, unique in this process."""
    requests: Sequence[EngineRequest]
    give_up: Callable[[Self], None]
    """Called once, when the block is left while some are `unfinished`."""
    arrived: float = field(default_factory=time.monotonic)
    """When the client asked, on the monotonic clock."""
    client: str = ""
    """Whose share of the queue its requests count for."""

    def __post_init__(self) -> None:
        self.unfinished = dict.fromkeys(request.request_id for request in self.requests)
        """The ids of those that have not ended, in their order."""
        self.usages: list[RequestUsage] = []
        """What those that ended by themselves took, in the order of their ends."""
        self.finish_reasons: list[str] = []
        """Why requests ended: one for each that ended by itself, one for all that were ended together."""
        self._inbox: list[TokenEvent] = []
        self._begun = False  # whether there ever was an event
        self._error: ApiError | None = None
        self._news = asyncio.Event()  # whether there is an event or an error to read
        self._timer: asyncio.TimerHandle | None = None

    def expire(self, seconds: float, end: Callable[[Self], None]) -> None:
        """Call `end` when so many seconds after its arrival it has not been closed."""
        if math.isfinite(seconds):
            left = self.arrived + seconds - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(left, end, self)

    def put(self, event: TokenEvent) -> None:
        """Hand over the next event of one of the requests, to be read with `wake`; the first, and any last, at once."""
        if event.finish_reason is not None:
            assert event.usage is not None  # the last event of every request carries it
            self.unfinished.pop(event.request_id, None)
            self.usages.append(event.usage)
            self.finish_reasons.append(event.finish_reason)
        self._inbox.append(event)
        if not self._begun or event.finish_reason is not None:
            self._news.set()
        self._begun = True

    def wake(self) -> None:
        """Have read what has been put."""
        if self._inbox:
            self._news.set()

    def fail(self, error: ApiError, reason: str | None = None) -> None:
        """End all requests with `error`, which the iterator raises once the events before it are read.

        `reason` says why they ended; None when they never began.
        """
        self.unfinished.clear()
        self.finish_reasons += [] if reason is None else [reason]
        self._error = error
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[TokenEvent]:
        if not self._inbox and self._error is None:
            if not self.unfinished:
                raise StopAsyncIteration
            await self._news.wait()
        self._news.clear()
        if not self._inbox:
            assert self._error is not None  # else there was no news
            raise self._error
        events, self._inbox = self._inbox, []
        return events

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what still runs; nothing when all has finished, or the second time."""
        if self._timer is not None:
            self._timer.cancel()
        if self.unfinished:
            self.give_up(self)
            self.unfinished.clear()
            self.finish_reasons.append("abort")
