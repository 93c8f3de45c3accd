"""Run the study's processes: share them among the devices, end them in time, leave none running."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from signal import SIGKILL, SIGTERM, Signals
from typing import NamedTuple

import torch

from experiments.language.plan import Run

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

    def ended(self, run: Run, status: int) -> None:
        """Record that the process of `run` ended; with status 0 it was computed to its end."""
        if status == 0:
            self._computed += run.operations

    def fits(self, run: Run, running: Sequence[Run]) -> bool:
        """Return whether `run` should end in time beside those that are `running`; True while nothing has ended.

        The forecast takes what runs as half done, and the speed to come as that so far.
        """
        if not self._computed:
            return True
        now = self._clock()
        half = sum(each.operations for each in running) / 2
        seconds = (half + run.operations) * (now - self._begin) / (self._computed + half)
        return now + seconds <= self._end


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

    def next_run() -> Run | None:
        if patience() is not None:
            return None
        now = [started.run for started in running]
        return next((run for run in ready() if run.name not in begun and patience.fits(run, now)), None)

    try:
        while True:
            while (device := _least_busy(places, running, jobs)) is not None and (run := next_run()) is not None:
                begun.add(run.name)
                running.append(Started(run, device, start(run, device)))
            if not running:
                return
            _signal(running, patience())
            for ended in [each for each in running if each.process.poll() is not None]:
                running.remove(ended)
                patience.ended(ended.run, ended.process.returncode)
                yield ended.run, ended.process.returncode
            time.sleep(TICK)
    finally:
        for started in running:
            started.process.kill()
            started.process.wait()


def _signal(running: Sequence[Started], number: Signals | None) -> None:
    """Send every process the signal; None: nothing."""
    if number is not None:
        for started in running:
            started.process.send_signal(number)


def _least_busy(places: Sequence[str], running: Sequence[Started], jobs: int) -> str | None:
    """Return the device with a free place whose runs have the fewest operations; None if no device has one."""
    busy: Mapping[str, list[Run]] = {place: [each.run for each in running if each.device == place] for place in places}
    free = [device for device in places if len(busy[device]) < jobs]
    return min(free, key=lambda device: sum(run.operations for run in busy[device]), default=None)
