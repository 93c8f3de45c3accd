"""How fast the engine's queue drains, which Retry-After says."""

import math
import time
from collections import deque

from thoughtbubbles.engine import EngineStats
from thoughtbubbles.server.bridge.loop import Aborted, Accepted, Refused, Report

WINDOW = 64
"""Admissions over which the rate is measured."""
LONGEST_RETRY_SECONDS = 120
"""OpenAI's client ignores a longer Retry-After."""


class DrainRate:
    """Notes the admissions of waiting streams. An observer that counts nothing else."""

    def __init__(self) -> None:
        self._admissions: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # time, streams admitted until then

    def count(self, report: Report) -> None:
        """Note what a report says of admissions."""
        if not isinstance(report, Accepted | Aborted | Refused):
            self.note(report.stats)

    def fail(self) -> None:
        """Note nothing: no queue is left."""

    def note(self, stats: EngineStats) -> None:
        """Note how many streams have been admitted."""
        if not self._admissions or stats.admitted_streams_total > self._admissions[-1][1]:
            self._admissions.append((time.monotonic(), stats.admitted_streams_total))

    def seconds_to_drain(self, stats: EngineStats) -> int:
        """Return in how many seconds the waiting streams are admitted, at the rate of the latest admissions."""
        if len(self._admissions) < 2:
            return 1
        (since, before), (_, now) = self._admissions[0], self._admissions[-1]
        seconds_each = (time.monotonic() - since) / (now - before)
        return min(max(1, math.ceil(stats.num_streams_waiting * seconds_each)), LONGEST_RETRY_SECONDS)
