"""Runs are shared out over what devices there are, and none outlives the time it was given."""

import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count

import pytest
import torch

from benchmarks.study_plan import Run, Study
from benchmarks.study_processes import GRACE, Patience, devices, work

NEVER: Callable[[], None] = lambda: None  # noqa: E731 - a name for what is never due


def process(code: str, output: int | None = None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdout=output)


def sleeper(run: Run, device: str) -> "subprocess.Popen[bytes]":
    """Ends only when it is asked to."""
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
def test_so_many_run_at_a_time_on_each_device_and_all_are_told_how_they_ended(study: Study, places: list[str]) -> None:
    running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        assert sum(place == device and process.returncode is None for place, process in running) < 2
        running.append((device, process(f"raise SystemExit({run.seed})")))
        return running[-1][1]

    ended = list(work(study.runs, start, places, 2, NEVER))
    assert sorted((run.name, status) for run, status in ended) == sorted((run.name, run.seed) for run in study.runs)
    assert {place for place, _ in running} == set(places)


def test_the_next_run_goes_where_the_least_is_computed(study: Study) -> None:
    """Those with forks, `2l` and `noise`, compute more than `regular`."""
    placed: dict[str, str] = {}

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        placed[run.name] = device
        return sleeper(run, device)

    calls = count()
    runs = [study.find("2l", 0), study.find("regular", 0), study.find("regular", 1), study.find("noise", 5)]
    list(work(runs, start, ["a", "b"], 2, lambda: signal.SIGKILL if next(calls) > 8 else None))
    assert placed == {"2l-0": "a", "regular-0": "b", "regular-1": "b", "noise-5": "a"}


def test_when_time_is_over_nothing_is_begun_and_what_runs_is_asked_to_end(study: Study) -> None:
    calls = count()
    ended = list(work(study.runs, sleeper, ["0"], 2, lambda: signal.SIGTERM if next(calls) > 4 else None))
    assert {(run.name, status) for run, status in ended} == {("regular-0", -15), ("2l-0", -15)}  # in either order
    assert not list(work(study.runs, sleeper, ["0"], 2, lambda: signal.SIGTERM))


def test_what_does_not_end_when_asked_is_ended(study: Study) -> None:
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

    assert [(run.name, status) for run, status in work(study.runs, start, ["0"], 1, due)] == [("regular-0", -9)]


def test_what_runs_is_ended_with_the_one_who_waits_for_it(study: Study) -> None:
    started = []

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        if run.name != "regular-0":
            raise OSError("no more processes")
        started.append(sleeper(run, device))
        return started[0]

    with pytest.raises(OSError, match="no more"):
        list(work(study.runs, start, ["0"], 2, NEVER))
    assert started[0].returncode == -9


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


def test_a_signal_to_the_study_ends_all(study: Study) -> None:
    """As `timeout` sends it."""
    stopping = False

    def start(run: Run, device: str) -> "subprocess.Popen[bytes]":
        nonlocal stopping
        stopping = True
        return sleeper(run, device)

    [(run, status)] = work(study.runs, start, ["0"], 2, Patience(float("inf"), lambda: stopping))
    assert (run.name, status) == ("regular-0", -signal.SIGTERM)
