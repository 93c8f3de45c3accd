"""Run the study's processes: share them among the devices, end them in time, leave none running."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM, Signals

import torch

from experiments.runner.forecast import START_SECONDS, Forecast
from experiments.runner.plan import Run

TICK = 0.2
"""Seconds between two looks at the processes."""
CHECK = 5.0
"""Seconds between two looks at whether those that run still fit."""
GRACE = 20.0
"""Seconds that a process has after SIGTERM: to save, or to measure what it has trained."""
MARGIN = 1.1
"""How many times the forecast must fit for one more run to start."""

Start = Callable[[Run, str], "subprocess.Popen[bytes]"]
"""Starts a run on a device."""


@dataclass
class Started:
    """A process, where it computes, and the last signal that it was sent."""

    run: Run
    device: str
    process: "subprocess.Popen[bytes]"
    signal: Signals | None = None

    def send(self, number: Signals) -> None:
        """Send the process a signal, unless it was sent already."""
        if self.signal != number:
            self.signal = number
            self.process.send_signal(number)


class Patience:
    """Which signal the processes are due: none, SIGTERM when time is over or this process is to stop, later SIGKILL."""

    def __init__(
        self, seconds: float, stopping: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stopping = stopping
        self._clock = clock
        self._end = clock() + seconds

    def __call__(self) -> Signals | None:
        """Return the signal that is due now."""
        now = self._clock()
        if self._stopping():
            self._end = min(self._end, now)
        if now < self._end:
            return None
        return SIGTERM if now < self._end + GRACE else SIGKILL

    @property
    def left(self) -> float:
        """Seconds until SIGTERM is due."""
        return self._end - self._clock()


def devices() -> list[str]:
    """Return the visible devices, each as CUDA_VISIBLE_DEVICES names it to a process; "" alone for none."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if given is None else given.split(",")[:count]
    return list(names) or [""]


class Work:
    """Processes of runs, `jobs` at a time on each of `places`, so that as many as can end in time.

    `ready` returns the runs without a result, the most important first. The next run goes to the device with the fewest
    operations; it is the first that, by the forecast, ends in time together with what runs there. On a device where
    nothing runs the first run starts even if it does not fit: it saves itself and is resumed later. If those that run
    on a device do not fit any more, the one with the most ahead is stopped, so that the others end; it may be resumed.
    """

    def __init__(
        self, ready: Callable[[], Sequence[Run]], start: Start, places: Sequence[str], jobs: int, *, patience: Patience,
        forecast: Forecast,
    ) -> None:  # fmt: skip
        self._ready = ready
        self._start = start
        self._places = places
        self._jobs = jobs
        self._patience = patience
        self._forecast = forecast
        self._running: list[Started] = []
        self._begun: set[str] = set()
        self._checked = patience.left

    def __call__(self) -> Iterator[tuple[Run, int]]:
        """Run what is ready, and yield each run that ended with its exit status. None runs twice, unless stopped early.

        Once a signal is due no further run is started and the processes get the signal. All have ended when this
        returns or raises.
        """
        try:
            while True:
                while self._start_one():
                    pass
                if not self._running:
                    return
                self._signal()
                for ended in [each for each in self._running if each.process.poll() is not None]:
                    self._running.remove(ended)
                    if ended.signal is not None:
                        self._begun.discard(ended.run.name)
                    yield ended.run, ended.process.returncode
                time.sleep(TICK)
        finally:
            for started in self._running:
                started.process.kill()
                started.process.wait()

    def _start_one(self) -> bool:
        """Start the next run on the least busy device where one fits; return whether there was one."""
        free = [place for place in self._places if len(self._on(place)) < self._jobs]
        if self._patience() is not None or not free:
            return False
        ready = [run for run in self._ready() if run.name not in self._begun]
        for device in sorted(free, key=self._operations):
            if (run := self._next(ready, device)) is not None:
                self._begun.add(run.name)
                self._running.append(Started(run, device, self._start(run, device)))
                return True
        return False

    def _next(self, ready: Sequence[Run], device: str) -> Run | None:
        here, left = [each.run for each in self._on(device)], self._patience.left
        endless = left == float("inf")
        fitting = (run for run in ready if endless or MARGIN * self._forecast.seconds([*here, run]) <= left)
        alone = not here and (left > START_SECONDS or not self._begun)
        return next(fitting, ready[0] if ready and alone else None)

    def _signal(self) -> None:
        """Send all processes the signal that is due; if none is, stop a run where not all can end in time."""
        due = self._patience()
        if due is not None:
            for started in self._running:
                started.send(due)
        elif self._checked - self._patience.left >= CHECK:
            self._checked = self._patience.left
            for place in self._places:
                self._stop_one(place)

    def _stop_one(self, device: str) -> None:
        """Stop the run with the most ahead on a device, if not all that run there can end in time."""
        here = {each.run: each for each in self._on(device)}
        stopping = any(each.signal for each in here.values())
        if len(here) < 2 or stopping or not self._forecast.known(list(here)):
            return
        if self._forecast.seconds(list(here)) > self._patience.left:
            longest = max(here, key=lambda run: self._forecast.seconds([run]))
            here[longest].send(SIGTERM)
            self._forecast.forget_speeds()

    def _on(self, device: str) -> list[Started]:
        return [each for each in self._running if each.device == device]

    def _operations(self, device: str) -> float:
        return sum(each.run.operations for each in self._on(device))
