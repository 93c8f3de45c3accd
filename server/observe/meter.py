"""What the engine's thread counts: so that accepted = finished + running + waiting in every census it publishes."""

import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from thoughtbubbles.engine import EngineStats, StepReport, TokenEvent
from thoughtbubbles.server.bridge.loading import ServedModel
from thoughtbubbles.server.observe.histograms import Histograms

FINISH_REASONS = ("stop", "length", "abort", "error", "timeout")
DRAIN_WINDOW = 64
"""Admissions over which the drain rate is measured."""
LONGEST_RETRY_SECONDS = 120
"""OpenAI's client ignores a longer Retry-After."""


@dataclass(frozen=True, kw_only=True)
class Census:
    """Requests and engine numbers at one moment between two steps, to be read from any thread."""

    up: bool
    """Whether the engine still runs."""
    model: ServedModel
    """What it runs."""
    stats: EngineStats
    """The engine's own numbers."""
    accepted: int
    """Requests that the engine ever took."""
    finished: Mapping[str, int]
    """Those that are done, by reason."""


@dataclass
class _Clock:
    arrived: float
    last_token: float | None = None


class Meter:
    """Counts and times requests. `census` may be read from anywhere; all else belongs to the engine's thread."""

    def __init__(self, histograms: Histograms) -> None:
        self.census: Census | None = None
        """The latest, replaced whole; None until the engine is loaded."""
        self._model: ServedModel | None = None
        self._histograms = histograms
        self._accepted = 0
        self._finished = dict.fromkeys(FINISH_REASONS, 0)
        self._clocks: dict[str, _Clock] = {}
        self._admissions: deque[tuple[float, int]] = deque(maxlen=DRAIN_WINDOW)  # when, and streams admitted by then

    def load(self, model: ServedModel, stats: EngineStats) -> None:
        """The engine is there."""
        self._model = model
        self.publish(stats)

    def accept(self, request_ids: Sequence[str], arrived: float) -> None:
        """The engine took these; their client asked at `arrived` (monotonic seconds)."""
        self._accepted += len(request_ids)
        self._clocks |= {request_id: _Clock(arrived) for request_id in request_ids}

    def step(self, events: Sequence[TokenEvent], report: StepReport | None) -> None:
        """The engine took a step, which made `events`; without a `report` there was nothing it could do."""
        if report is None:
            return
        now = time.monotonic()
        self._histograms.step_duration.labels(phase=report.phase).observe(report.seconds)
        self._histograms.step_batch_size.observe(report.batch_size)
        for streams, times in Counter(report.fork_counts).items():
            self._histograms.streams_per_token.observe(streams, times)
        broken = [event.request_id for event in events if event.finish_reason == "error"]
        if broken:
            events = [event for event in events if event.finish_reason != "error"]
            self.abort(broken, "error")
        self._time_tokens(events, now)
        for event in events:
            if event.finish_reason is not None:
                self._finish(event, event.finish_reason, now)

    def abort(self, request_ids: Sequence[str], reason: str) -> None:
        """These ended before their end: by their client (`abort`), the clock (`timeout`) or a failure (`error`)."""
        self._finished[reason] += len(request_ids)
        for request_id in request_ids:
            del self._clocks[request_id]

    def fail(self) -> None:
        """The engine is gone, and with it whatever was running or waiting."""
        self._finished["error"] += self._accepted - sum(self._finished.values())
        self._clocks.clear()
        if self.census is not None:
            self.publish(
                replace(self.census.stats, num_requests_running=0, num_requests_waiting=0, num_streams_waiting=0),
                up=False,
            )

    def publish(self, stats: EngineStats, *, up: bool = True) -> None:
        """Make a census of this moment."""
        assert self._model is not None
        if not self._admissions or stats.admitted_streams_total > self._admissions[-1][1]:
            self._admissions.append((time.monotonic(), stats.admitted_streams_total))
        self.census = Census(
            up=up, model=self._model, stats=stats, accepted=self._accepted, finished=dict(self._finished)
        )

    def seconds_to_drain(self, stats: EngineStats) -> int:
        """Whole seconds until the streams that wait have had their turn, at the rate measured lately."""
        if len(self._admissions) < 2:
            return 1
        (since, before), (_, now) = self._admissions[0], self._admissions[-1]
        seconds_each = (time.monotonic() - since) / (now - before)
        return min(max(1, math.ceil(stats.num_streams_waiting * seconds_each)), LONGEST_RETRY_SECONDS)

    def _time_tokens(self, events: Sequence[TokenEvent], now: float) -> None:
        since: Counter[float] = Counter()  # tokens by when the one before came, which is the same for most of a step
        for event in events:
            clock = self._clocks[event.request_id]
            if clock.last_token is None:
                self._histograms.time_to_first_token.observe(now - clock.arrived)
            else:
                since[clock.last_token] += 1
            clock.last_token = now
        for then, times in since.items():
            self._histograms.inter_token_latency.observe(now - then, times)

    def _finish(self, event: TokenEvent, reason: str, now: float) -> None:
        self._finished[reason] += 1
        self._histograms.e2e_request_latency.observe(now - self._clocks.pop(event.request_id).arrived)
        assert event.usage is not None  # the last event of every request carries it
        self._histograms.observe_usage(event.usage)
