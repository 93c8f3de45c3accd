"""Forecast when runs that share a device will have ended, from what they log and from former results."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.runner.plan import Result, Run
from thoughtbubbles.training.state import has_state, latest_state
from thoughtbubbles.training.trainer import LOG_FILE, STATE_FOLDER

START_SECONDS = 45.0
"""From the start of a process to its first compiled steps. Of 24M models, six side by side, 40 were compilation."""
MEASURE_SECONDS = {"tuning": 5.0, "final": 35.0}
"""For measuring a trained model, where former results do not say. Of 24M models it was up to 4 and 33."""


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    """Steps that are done."""
    speed: float | None
    """Operations a second, lately and beside what shares the device; None before two lines of the log."""


class Progresses:
    """The progress of runs in the folder `out`, read from their saved states and their logs."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._sizes: dict[str, int] = {}
        self._read: dict[str, tuple[int, Progress]] = {}

    def begun(self, run: Run) -> None:
        """Record that a process of `run` starts now: what its log has so far says nothing of its speed."""
        log = self._log(run)
        self._sizes[run.name] = log.read_bytes().rfind(b"\n") + 1 if log.exists() else 0  # the run removes what follows
        self._read.pop(run.name, None)

    def __call__(self, run: Run) -> Progress:
        """Return how far `run` is: by its log since it `begun`, or by its saved state."""
        log = self._log(run)
        if run.name not in self._sizes or not log.exists():
            return Progress(saved_step(self._out / run.name), None)
        size = log.stat().st_size
        if run.name not in self._read or self._read[run.name][0] != size:
            self._read[run.name] = size, self._read_log(run)
        return self._read[run.name][1]

    def _read_log(self, run: Run) -> Progress:
        with self._log(run).open("rb") as file:
            file.seek(self._sizes[run.name])
            lines = [json.loads(line) for line in file.read().split(b"\n")[:-1]]
        speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
        per_token = run.operations / run.tokens
        # The first line's time includes compilation.
        speed = speeds[-1] * per_token if len(speeds) > 1 else None
        return Progress(lines[-1]["step"] if lines else saved_step(self._out / run.name), speed)

    def _log(self, run: Run) -> Path:
        return self._out / run.name / LOG_FILE


class Forecast:
    """Forecasts from `progress`, and from `results` that were made on the same machine.

    Runs on a device share its speed, in operations a second: the sum of what they log. While one has yet to log, it is
    the best that one run of its size ever had, if that is more. Both are less than a device does with enough side by
    side, so that a forecast is late rather than early.
    """

    def __init__(self, progress: Callable[[Run], Progress], results: Sequence[Result] = ()) -> None:
        self._progress = progress
        self._speeds: dict[str, float] = {}
        self._measuring: dict[tuple[str, str], float] = {}
        for result in results:
            self._learn(result)

    def seconds(self, runs: Sequence[Run]) -> float:
        """Return in how many seconds `runs`, alone on one device, have all ended; infinite if no speed is known.

        Those without a line in their log have yet to start.
        """
        found = {run: self._progress(run) for run in runs}
        now = sum(each.speed or 0.0 for run, each in found.items() if each.step < run.training.steps)
        logged, training = self.known(runs), 0.0
        for run, each in found.items():
            speed = now if logged else max(now, self._speeds.get(run.size, 0.0))
            training += _left(run, each) / speed if speed else float("inf") if _left(run, each) else 0.0
        return training + max(self._beside(run, each) for run, each in found.items())

    def known(self, runs: Sequence[Run]) -> bool:
        """Return whether all `runs` have logged their speed since they started."""
        return all(self._progress(run).speed is not None for run in runs)

    def forget_speeds(self) -> None:
        """Use no former speeds from now on: they were higher than what is logged."""
        self._speeds.clear()

    def _beside(self, run: Run, progress: Progress) -> float:
        """Return the seconds of a run that are no training."""
        start = 0.0 if progress.speed is not None else START_SECONDS
        return start + self._measuring.get((run.size, run.kind), MEASURE_SECONDS[run.kind])

    def _learn(self, result: Result) -> None:
        if result.get("tokens_per_second") and result.get("flops_per_token"):
            speed = result["tokens_per_second"] * result["flops_per_token"]
            self._speeds[result["size"]] = max(speed, self._speeds.get(result["size"], 0.0))
        if "seconds" in result and "training_seconds" in result:
            key, seconds = (result["size"], result["kind"]), result["seconds"] - result["training_seconds"]
            self._measuring[key] = max(seconds, self._measuring.get(key, 0.0))


def saved_step(folder: Path) -> int:
    """Return the step of the latest state in a run's folder; 0 if it has none."""
    states = folder / STATE_FOLDER
    return int(latest_state(states).name.removeprefix("step-")) if has_state(states) else 0


def _left(run: Run, progress: Progress) -> float:
    """Return the operations that a run has ahead."""
    return run.operations * (1 - progress.step / run.training.steps)
