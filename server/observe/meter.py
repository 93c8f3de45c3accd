"""Counters of what the engine reports. In each of their snapshots accepted = finished + running + waiting."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from thoughtbubbles.engine import EngineStats, StepReport, TokenEvent
from thoughtbubbles.server.bridge.errors import LoadRefusedError
from thoughtbubbles.server.bridge.loop import (
    Aborted,
    Accepted,
    CommandsDone,
    Loaded,
    LoadEnded,
    Report,
    Stepped,
    WeightsLoaded,
)
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.observe.drain_rate import DrainRate
from thoughtbubbles.server.observe.histograms import Histograms

LOAD_OUTCOMES = ("loaded", "refused", "failed")
FINISH_REASONS = ("stop", "length", "abort", "error", "timeout")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Request counts and engine stats at one moment between two steps. Any thread may read it."""

    up: bool
    """Whether the engine runs."""
    model: ServedModel
    """The model that it runs."""
    stats: EngineStats
    """The engine's own numbers."""
    accepted: int
    """Requests that the engine has accepted."""
    finished: Mapping[str, int]
    """Requests that have ended, by finish reason."""
    loads: Mapping[str, int]
    """Loads of weights that have ended, by outcome."""


class Meter:
    """Counts and times requests on the thread that gets the reports. Any thread may read `snapshot`."""

    def __init__(self, histograms: Histograms) -> None:
        self.snapshot: Snapshot | None = None
        """The latest; None until the engine is loaded."""
        self._model: ServedModel | None = None
        self._histograms = histograms
        self._accepted = 0
        self._finished = dict.fromkeys(FINISH_REASONS, 0)
        self._loads = dict.fromkeys(LOAD_OUTCOMES, 0)
        self._arrived: dict[str, float] = {}  # when each request that has not ended arrived
        self._latest: dict[str, float] = {}  # when its latest token was counted
        self._drain_rate = DrainRate()

    def count(self, report: Report) -> None:
        """Count what the engine reports, and replace the snapshot if the report has the engine's stats."""
        match report:
            case Loaded(model, stats):
                self._model = model
                self._publish(stats)
            case Accepted(request_ids, arrived):
                self._accepted += len(request_ids)
                self._arrived |= dict.fromkeys(request_ids, arrived)
            case Aborted(request_ids, reason):
                self._abort(request_ids, reason)
            case WeightsLoaded() | LoadEnded():
                self._count_load(report)
            case CommandsDone(stats):
                self._publish(stats)
            case Stepped(events, step_report, stats):
                if step_report is not None:
                    self._count_step(events, step_report)
                self._publish(stats)

    def fail(self) -> None:
        """Count all requests that run or wait as failed: the engine has ended."""
        self._finished["error"] += self._accepted - sum(self._finished.values())
        self._arrived.clear()
        self._latest.clear()
        if self.snapshot is not None:
            self._publish(
                replace(self.snapshot.stats, num_requests_running=0, num_requests_waiting=0, num_streams_waiting=0),
                up=False,
            )

    def seconds_to_drain(self, stats: EngineStats) -> int:
        """Return in how many seconds the waiting streams are admitted, at the rate of the latest admissions."""
        return self._drain_rate.seconds_to_drain(stats)

    def _publish(self, stats: EngineStats, *, up: bool = True) -> None:
        assert self._model is not None
        self._drain_rate.note(stats)
        self.snapshot = Snapshot(
            up=up, model=self._model, stats=stats, accepted=self._accepted, finished=dict(self._finished),
            loads=dict(self._loads),
        )  # fmt: skip

    def _count_step(self, events: Sequence[TokenEvent], report: StepReport) -> None:
        now = time.monotonic()
        self._histograms.step_duration.labels(phase=report.phase).observe(report.seconds)
        self._histograms.step_batch_size.observe(report.batch_size)
        for streams, times in Counter(report.fork_counts).items():
            self._histograms.streams_per_token.observe(streams, times)
        self._time_tokens([event.request_id for event in events if event.token_id is not None], now)
        for event in events:
            if event.finish_reason == "error":
                self._abort([event.request_id], "error")
            elif event.finish_reason is not None:
                self._finish(event, event.finish_reason, now)

    def _count_load(self, report: WeightsLoaded | LoadEnded) -> None:
        match report:
            case WeightsLoaded(version, revision):
                assert self._model is not None
                self._model = self._model.with_weights(version, revision)
                self._loads["loaded"] += 1
            case LoadEnded(error):
                self._loads["refused" if isinstance(error, LoadRefusedError) else "failed"] += 1
        self._publish(report.stats)

    def _abort(self, request_ids: Sequence[str], reason: str) -> None:
        """Count requests that did not finish: aborted by the client, or ended by `timeout` or `error`."""
        self._finished[reason] += len(request_ids)
        for request_id in request_ids:
            self._forget(request_id)

    def _time_tokens(self, request_ids: Sequence[str], now: float) -> None:
        """Count the time of a token of each of these requests; one that is named again has several tokens.

        Most tokens of a step share the time of the previous one, so they are counted together.
        """
        each = dict.fromkeys(request_ids, now)
        for then, times in Counter(map(self._latest.get, each)).items():
            if then is not None:
                self._histograms.inter_token_latency.observe(now - then, times)
                continue
            for request_id in each.keys() - self._latest.keys():
                self._histograms.time_to_first_token.observe(now - self._arrived[request_id])
        self._histograms.inter_token_latency.observe(0.0, len(request_ids) - len(each))
        self._latest |= each

    def _finish(self, event: TokenEvent, reason: str, now: float) -> None:
        self._finished[reason] += 1
        self._histograms.e2e_request_latency.observe(now - self._forget(event.request_id))
        assert event.usage is not None  # the last event of every request carries it
        self._histograms.observe_usage(event.usage)

    def _forget(self, request_id: str) -> float:
        """Forget a request that has ended. Return when it arrived."""
        self._latest.pop(request_id, None)
        return self._arrived.pop(request_id)
