"""Runs are distributed over the visible devices, and none outlives the time of the study."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import pytest
import torch

from experiments.runner.forecast import Forecast, Progress
from experiments.runner.plan import Run, Study
from experiments.runner.processes import GRACE, Patience, Start, Work, devices


def never() -> bool:
    """Whether this process is to stop."""
    return False


class Signalling(Patience):
    """Patience that ends by number of looks, not by the clock."""

    def __init__(self, due: Callable[[], signal.Signals | None] = lambda: None) -> None:
        super().__init__(float("inf"), never)
        self._due = due

    def __call__(self) -> signal.Signals | None:
        return self._due()


def work(
    ready: Callable[[], Sequence[Run]], start: Start, places: Sequence[str], jobs: int, patience: Patience
) -> Iterator[tuple[Run, int]]:
    """Run `Work` with a forecast that knows nothing, which does not matter while time is not limited."""
    forecast = Forecast(lambda run: Progress(0, None))
    return Work(ready, start, places, jobs, patience=patience, forecast=forecast)()


@pytest.fixture
def runs(study: Study) -> list[Run]:
    """Four short runs of two arms."""
    return study.runs([])[:4]


def process(code: str, output: int | None = None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdout=output)


def sleeper(run: Run, device: str) -> "subprocess.Popen[bytes]":
    """A process that ends only on SIGTERM."""
    return process("import signal; signal.pause()")


@pytest.mark.parametrize(
    ("given", "count", "places"),
    [
        (None, 0, [""]),
        (None, 2, ["0", "1"]),
        ("3", 1, ["3"]),
        ("3,1", 2, ["3", "1"]),
        ("1,-1,2", 1, ["1"]),  # CUDA reads no further than what it does not know
        ("GPU-4711,GPU-42", 2, ["GPU-4711", "GPU-42"]),
        ("", 0, [""]),
    ],
)
def test_devices_are_those_that_are_visible_by_the_names_they_have(
    given: str | None, count: int, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert devices() == places


@pytest.mark.parametrize("places", [[""], ["0", "1"]])
def test_so_many_run_at_a_time_on_each_device_and_every_exit_status_is_reported(
    runs: list[Run], places: list[str]
) -> None:
    running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        assert sum(place == device and process.returncode is None for place, process in running) < 2
        running.append((device, process(f"raise SystemExit({runs.index(run)})")))
        return running[-1][1]

    ended = list(work(lambda: runs, start, places, 2, Signalling()))
    assert sorted((run.name, status) for run, status in ended) == sorted((run.name, i) for i, run in enumerate(runs))
    assert {place for place, _ in running} == set(places)


def test_a_run_that_becomes_ready_is_started_and_none_is_started_twice(runs: list[Run]) -> None:
    started: list[str] = []
    done: list[Run] = []

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        started.append(run.name)
        return process("")

    def ready() -> list[Run]:
        return [runs[0], runs[1]] if len(done) < 2 else [runs[0], runs[2]]  # the first one's result never comes

    for run, _ in work(ready, start, [""], 2, Signalling()):
        done.append(run)
    assert started == [run.name for run in runs[:3]]


def test_the_next_run_goes_where_the_least_is_computed(study: Study) -> None:
    """Those with forks compute more than `regular`."""
    regular, forks, regular_again, forks_again = study.runs([])[:4]
    placed: dict[str, str] = {}

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        placed[run.name] = device
        return sleeper(run, device)

    calls = count()
    due = Signalling(lambda: signal.SIGKILL if next(calls) > 8 else None)
    list(work(lambda: [forks, regular, regular_again, forks_again], start, ["a", "b"], 2, due))
    assert placed == {forks.name: "a", regular.name: "b", regular_again.name: "b", forks_again.name: "a"}


def test_when_time_is_over_no_run_is_started_and_those_that_run_get_the_signal(runs: list[Run]) -> None:
    calls = count()
    due = Signalling(lambda: signal.SIGTERM if next(calls) > 4 else None)
    ended = list(work(lambda: runs, sleeper, ["0"], 2, due))
    assert {(run.name, status) for run, status in ended} == {(run.name, -15) for run in runs[:2]}
    assert not list(work(lambda: runs, sleeper, ["0"], 2, Signalling(lambda: signal.SIGTERM)))


def test_a_process_that_ignores_the_signal_is_killed(runs: list[Run]) -> None:
    asked, started = count(), list[subprocess.Popen[bytes]]()

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        code = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()"
        deaf = process(code, subprocess.PIPE)
        assert deaf.stdout is not None
        with deaf.stdout as output:
            output.readline()
        started.append(deaf)
        return deaf

    def due() -> signal.Signals | None:
        if not started:
            return None
        return signal.SIGTERM if next(asked) < 4 else signal.SIGKILL

    assert [status for _, status in work(lambda: runs, start, ["0"], 1, Signalling(due))] == [-9]


def test_processes_end_with_the_study(runs: list[Run]) -> None:
    started = []

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        if started:
            raise OSError("no more processes")
        started.append(sleeper(run, device))
        return started[0]

    with pytest.raises(OSError, match="no more"):
        list(work(lambda: runs, start, ["0"], 2, Signalling()))
    assert started[0].returncode == -9


def test_a_process_gets_each_signal_once(runs: list[Run]) -> None:
    """It was sent every tick, and one of them hit a process that was deleting its state."""
    code = """
import signal, sys, time
got = []
signal.signal(15, lambda number, _: got.append(number))
print(1, flush=True)
time.sleep(1.5)
sys.exit(len(got))
"""
    calls = count()

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        ready = process(code, subprocess.PIPE)
        assert ready.stdout is not None
        with ready.stdout as output:
            output.readline()
        return ready

    due = Signalling(lambda: signal.SIGTERM if next(calls) > 1 else None)
    assert [status for _, status in work(lambda: runs[:1], start, ["0"], 1, due)] == [1]


def test_patience_ends_after_the_seconds_or_when_this_process_is_asked_to_stop() -> None:
    now, stop = 100.0, False
    patient = Patience(30, lambda: stop, lambda: now)
    asked = Patience(float("inf"), lambda: stop, lambda: now)
    assert (patient(), asked()) == (None, None)
    now = 130.0
    assert (patient(), asked()) == (signal.SIGTERM, None)
    now, stop = 140.0, True
    assert (patient(), asked()) == (signal.SIGTERM, signal.SIGTERM)
    now = 130.0 + GRACE
    assert (patient(), asked()) == (signal.SIGKILL, signal.SIGTERM)
    now = 140.0 + GRACE
    assert (patient(), asked()) == (signal.SIGKILL, signal.SIGKILL)


def test_a_stop_of_the_study_ends_its_processes(runs: list[Run]) -> None:
    """As SIGTERM from `timeout` does."""
    stopping = False

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        nonlocal stopping
        stopping = True
        return sleeper(run, device)

    [(run, status)] = work(lambda: runs, start, ["0"], 2, Patience(float("inf"), lambda: stopping))
    assert (run.name, status) == (runs[0].name, -signal.SIGTERM)
