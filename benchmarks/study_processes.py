"""Runs of `benchmarks.study` as processes: shared out over the devices, ended in time, none of them left behind."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from signal import SIGKILL, SIGTERM, Signals
from typing import NamedTuple

import torch

from benchmarks.study_plan import Run

TICK = 0.2
"""Seconds between two looks at what runs."""
GRACE = 20.0
"""Seconds that a process which was asked to end has for it: to save, or to measure what it has trained."""

Start = Callable[[Run, str], "subprocess.Popen[bytes]"]
"""Starts a run on a device."""


class Started(NamedTuple):
    """A process and where it computes."""

    device: str
    process: "subprocess.Popen[bytes]"


class Patience:
    """Which signal the processes are due: none, SIGTERM when time is over or this process is to stop, later SIGKILL."""

    def __init__(
        self, seconds: float, stopping: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stopping = stopping
        self._clock = clock
        self._end = clock() + seconds

    def __call__(self) -> Signals | None:
        """The signal that is due now."""
        now = self._clock()
        if self._stopping():
            self._end = min(self._end, now)
        if now < self._end:
            return None
        return SIGTERM if now < self._end + GRACE else SIGKILL


def devices() -> list[str]:
    """The devices that are visible here, each as CUDA_VISIBLE_DEVICES names it to a process; "" alone for none."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if given is None else given.split(",")[:count]
    return list(names) or [""]


def work(
    runs: Sequence[Run], start: Start, places: Sequence[str], jobs: int, due: Callable[[], Signals | None]
) -> Iterator[tuple[Run, int]]:
    """Start a process for each run, `jobs` at a time on each of `places`, and tell its exit status when it ends.

    The next run goes where the least is to be computed. Once a signal is `due()` no further one is started, and those
    that run are sent it. However this ends, they have ended too.
    """
    waiting, running = list(runs), dict[Run, Started]()
    try:
        while running or (waiting and due() is None):
            while waiting and due() is None and (device := _least_busy(places, running, jobs)) is not None:
                run = waiting.pop(0)
                running[run] = Started(device, start(run, device))
            if (number := due()) is not None:
                for _, process in running.values():
                    process.send_signal(number)
            for run in [run for run, started in running.items() if started.process.poll() is not None]:
                yield run, running.pop(run).process.returncode
            time.sleep(TICK)
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()


def _least_busy(places: Sequence[str], running: Mapping[Run, Started], jobs: int) -> str | None:
    """Of the devices with a place for another process, the one whose runs have the fewest operations; None: none."""
    busy = {device: [run for run, started in running.items() if started.device == device] for device in places}
    free = [device for device in places if len(busy[device]) < jobs]
    return min(free, key=lambda device: sum(run.operations for run in busy[device]), default=None)
