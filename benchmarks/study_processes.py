"""Runs of `benchmarks.study` as processes: distributed over the devices, ended in time, none of them left running."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from signal import SIGKILL, SIGTERM, Signals
from typing import NamedTuple

import torch

from benchmarks.study_plan import Run

TICK = 0.2
"""Seconds between two looks at the processes."""
GRACE = 20.0
"""Seconds that a process has after SIGTERM: to save, or to measure what it has trained."""

Start = Callable[[Run, str], "subprocess.Popen[bytes]"]
"""Starts a run on a device."""


class Started(NamedTuple):
    """A process and where it computes."""

    run: Run
    device: str
    process: "subprocess.Popen[bytes]"


class Patience:
    """Which signal the processes are due: none, SIGTERM when time is over or this process is to stop, later SIGKILL.

    It also forecasts, from what has been computed so far, whether another run would end in time.
    """

    def __init__(
        self, seconds: float, stopping: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stopping = stopping
        self._clock = clock
        self._begin = clock()
        self._end = self._begin + seconds
        self._computed = 0.0

    def __call__(self) -> Signals | None:
        """Return the signal that is due now."""
        now = self._clock()
        if self._stopping():
            self._end = min(self._end, now)
        if now < self._end:
            return None
        return SIGTERM if now < self._end + GRACE else SIGKILL

    def ended(self, run: Run) -> None:
        """Record that `run` was computed to its end."""
        self._computed += run.operations

    def fits(self, run: Run, running: Sequence[Run]) -> bool:
        """Return whether `run` should end in time beside those that are `running`; True while nothing has ended.

        The forecast takes what runs as half done, and the speed as that of everything so far.
        """
        if not self._computed:
            return True
        now = self._clock()
        ahead = sum(each.operations for each in running) / 2 + run.operations
        return now + ahead * (now - self._begin) / self._computed <= self._end


def devices() -> list[str]:
    """Return the visible devices, each as CUDA_VISIBLE_DEVICES names it to a process; "" alone for none."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if given is None else given.split(",")[:count]
    return list(names) or [""]


def work(
    ready: Callable[[], Sequence[Run]], start: Start, places: Sequence[str], jobs: int, patience: Patience
) -> Iterator[tuple[Run, int]]:
    """Start a process for each run that is `ready`, `jobs` at a time on each of `places`; yield its exit status.

    `ready` is called whenever a place is free, and returns the runs without a result, the most important first; none is
    started twice. The next run goes where the fewest operations are computed. Once a signal is due no further run is
    started and the processes get the signal. All have ended when this returns or raises.
    """
    running: list[Started] = []
    begun: set[str] = set()
    try:
        while True:
            while patience() is None and (device := _least_busy(places, running, jobs)) is not None:
                now = [started.run for started in running]
                waiting = (run for run in ready() if run.name not in begun and patience.fits(run, now))
                if (run := next(waiting, None)) is None:
                    break
                begun.add(run.name)
                running.append(Started(run, device, start(run, device)))
            if not running:
                return
            if (number := patience()) is not None:
                for started in running:
                    started.process.send_signal(number)
            for started in [each for each in running if each.process.poll() is not None]:
                running.remove(started)
                if started.process.returncode == 0:
                    patience.ended(started.run)
                yield started.run, started.process.returncode
            time.sleep(TICK)
    finally:
        for started in running:
            started.process.kill()
            started.process.wait()


def _least_busy(places: Sequence[str], running: Sequence[Started], jobs: int) -> str | None:
    """Return the device with a free place whose runs have the fewest operations; None if no device has one."""
    busy: Mapping[str, list[Run]] = {place: [each.run for each in running if each.device == place] for place in places}
    free = [device for device in places if len(busy[device]) < jobs]
    return min(free, key=lambda device: sum(run.operations for run in busy[device]), default=None)
