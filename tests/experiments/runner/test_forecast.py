"""As many runs end within a lease as can: fewer start when time is short, and one makes way for the others."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from experiments.runner.forecast import START_SECONDS, Forecast, Progress, Progresses
from experiments.runner.plan import Run, Study
from experiments.runner.processes import Patience, Work
from tests.experiments.harness import result

ALONE = 100.0
"""Seconds of training of one run alone."""
FAKE_START, FAKE_MEASURE = 40.0, 10.0


class FakeDevice:
    """A clock, and processes that share one device's speed equally. What they trained is kept when they stop."""

    def __init__(self, speed: float) -> None:
        self.now = 0.0
        self._speed = speed
        self.done: dict[str, float] = {}
        """Operations by run."""
        self.results: list[str] = []
        self._processes: list[FakeProcess] = []

    def start(self, run: Run, _device: str) -> "subprocess.Popen[bytes]":
        self._processes.append(FakeProcess(self, run))
        return cast("subprocess.Popen[bytes]", self._processes[-1])

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for each in self.training:
            done = self.done.get(each.run.name, 0.0) + seconds * self._speed / len(self.training)
            self.done[each.run.name] = min(each.run.operations, done)
        for each in self._processes:
            each.look()

    @property
    def training(self) -> "list[FakeProcess]":
        return [each for each in self._processes if each.returncode is None and each.begins <= self.now and each.ahead]

    def progress(self, run: Run) -> Progress:
        trains = any(each.run == run for each in self.training)
        share = self._speed / max(1, len(self.training)) if trains else None
        return Progress(int(self.done.get(run.name, 0.0) / run.operations * run.training.steps), share)


class FakeProcess:
    """Loads, trains, measures and ends; SIGTERM ends it unless it is measuring."""

    def __init__(self, device: FakeDevice, run: Run) -> None:
        self.run = run
        self.begins = device.now + FAKE_START
        self.returncode: int | None = None
        self._device = device
        self._trained_at: float | None = None

    @property
    def ahead(self) -> float:
        return self.run.operations - self._device.done.get(self.run.name, 0.0)

    def look(self) -> None:
        if self.returncode is None and not self.ahead:
            self._trained_at = self._trained_at or self._device.now
            if self._device.now >= self._trained_at + FAKE_MEASURE:
                self.returncode = 0
                self._device.results.append(self.run.name)

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, _number: int) -> None:
        if self.ahead and self.returncode is None:
            self.returncode = 0

    def kill(self) -> None:
        self.returncode = self.returncode or -9

    def wait(self) -> None:
        assert self.returncode is not None


@pytest.fixture
def finals(study: Study) -> list[Run]:
    """Six runs of equal length."""
    run = study.run("small", "2l", "final", 0, 1e-2)
    longer = run.training.__class__(**{**run.training.to_dict(), "steps": 1000})
    return [
        run._replace(seed=seed, training=longer.__class__(**{**longer.to_dict(), "seed": seed})) for seed in range(6)
    ]


def lease(
    device: FakeDevice, runs: Sequence[Run], seconds: float, monkeypatch: pytest.MonkeyPatch,
    results: Sequence[dict[str, Any]] = (),
) -> list[tuple[str, int]]:  # fmt: skip
    """Do what a command with so many seconds does; return the runs that ended and their exit status."""
    monkeypatch.setattr(time, "sleep", device.sleep)
    patience = Patience(seconds, lambda: False, lambda: device.now)

    def ready() -> list[Run]:
        missing = [run for run in runs if run.name not in device.results]
        return sorted(missing, key=lambda run: device.done.get(run.name, 0.0) == 0)

    work = Work(ready, device.start, ["0"], 6, patience=patience, forecast=Forecast(device.progress, results))
    return [(run.name, status) for run, status in work()]


def former(run: Run, speed: float) -> dict[str, Any]:
    per_token = run.operations / run.tokens
    return result(run, 3.0, tokens_per_second=speed / per_token, flops_per_token=per_token,
                  training_seconds=100.0, seconds=110.0)  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
def test_a_lease_ends_with_as_many_results_as_fit(
    finals: list[Run], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six side by side, each with a sixth of the device, were all cut short of their end: none had a result."""
    speed = finals[0].operations / ALONE
    device = FakeDevice(speed)
    results = [former(finals[0], speed)] if known else []
    lease(device, finals, 420.0, monkeypatch, results)
    assert len(device.results) >= 3
    assert device.now <= 420.0 + 1
    before = len(device.results)
    lease(device, finals, 420.0, monkeypatch, results)
    assert len(device.results) == 6 or len(device.results) >= before + 3


def test_a_run_that_keeps_the_others_from_ending_is_stopped_and_resumed(
    finals: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forecast knew a device twice as fast: all six start, and would be at 5/6 at the end."""
    speed = finals[0].operations / ALONE
    device = FakeDevice(speed)
    ended = lease(device, finals, 500.0, monkeypatch, [former(finals[0], 2 * speed)])
    assert len(device.results) >= 3
    stopped = [name for name, _ in ended if name not in device.results]
    assert 1 <= len(stopped) <= 5
    assert all(device.done[name] > 0 for name in stopped)
    lease(device, finals, 500.0, monkeypatch, [former(finals[0], speed)])
    assert len(device.results) == 6


def test_a_run_longer_than_a_lease_is_done_in_several(finals: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    speed = finals[0].operations / 1000.0
    device = FakeDevice(speed)
    known = [former(finals[0], speed)]
    for _ in range(2):
        lease(device, finals, 420.0, monkeypatch, known)
        assert list(device.done) == [finals[0].name]  # one alone, not six at once
    lease(device, finals, 420.0, monkeypatch, known)
    assert device.results == [finals[0].name]


def test_without_a_limit_all_jobs_are_used(finals: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(finals[0].operations / ALONE)
    lease(device, finals, float("inf"), monkeypatch)
    assert len(device.results) == 6
    assert device.now < 700


def test_a_forecast_counts_what_is_left_the_start_and_the_measuring(finals: list[Run]) -> None:
    progress = {finals[0]: Progress(500, finals[0].operations / 50), finals[1]: Progress(0, None)}
    forecast = Forecast(progress.__getitem__)
    alone = forecast.seconds(finals[:1])
    assert alone == 25 + 35  # half of its steps at the speed it has, and measuring
    assert forecast.seconds(finals[1:2]) == float("inf")  # nothing is known of a device where nothing ran
    assert forecast.seconds(finals[:2]) == 25 + 50 + START_SECONDS + 35
    assert forecast.known(finals[:1])
    assert not forecast.known(finals[:2])
    informed = Forecast(progress.__getitem__, [former(finals[0], finals[0].operations / 10)])
    assert informed.seconds(finals[1:2]) == 10 + START_SECONDS + 10


def test_progress_is_read_from_the_log_since_the_start_and_from_the_saved_state(
    finals: list[Run], tmp_path: Path
) -> None:
    run, progress = finals[0], Progresses(tmp_path)
    assert progress(run) == Progress(0, None)
    state = tmp_path / run.name / "state" / "step-400"
    state.mkdir(parents=True)
    (state / ".metadata").touch()
    log = tmp_path / run.name / "log.jsonl"
    log.write_text(json.dumps({"step": 450, "tokens_per_second": 7}) + "\n")
    progress.begun(run)
    assert progress(run) == Progress(400, None)  # 50 of its steps were lost
    with log.open("a") as file:
        for line in ({"step": 450, "tokens_per_second": 1}, {"step": 500, "val_loss": 3.0}):
            file.write(json.dumps(line) + "\n")
    assert progress(run) == Progress(500, None)  # the first speed has compilation in it
    with log.open("a") as file:
        file.write(json.dumps({"step": 550, "tokens_per_second": 100}) + "\n" + '{"step": 6')
    found = progress(run)
    assert found.step == 550
    assert found.speed == pytest.approx(100 * run.operations / run.tokens)


def test_a_line_that_was_cut_off_before_the_start_is_not_counted(tmp_path: Path, study: Study) -> None:
    """The run removes it as it goes on, so that its first line begins where the cut one did."""
    run, progress = study.run("small", "2l", "final", 0, 1e-3), Progresses(tmp_path)
    log = tmp_path / run.name / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 1, "val_loss": 3.0}\n{"step": 2, "val_lo', encoding="utf-8")
    progress.begun(run)
    log.write_text('{"step": 1, "val_loss": 3.0}\n{"step": 2, "val_loss": 2.0}\n', encoding="utf-8")
    assert progress(run).step == 2
