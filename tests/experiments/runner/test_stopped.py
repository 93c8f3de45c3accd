"""A run that is stopped at any moment keeps what it has trained, and a result that was written is never lost."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.language.arm import main as train_arm
from experiments.language.study import main as train_all
from experiments.runner.plan import Study
from experiments.runner.results import append_result, read_results
from experiments.runner.study import record
from tests.experiments.harness import TINY, result

ONE_ARM = TINY.partition("[[stages]]")[0].replace("rates = [1e-3, 1e-2]", "rates = [1e-2]") + (
    '[[stages]]\nsize = "small"\narms = ["regular"]\nseeds = [3]\n'
)


def test_a_run_that_gets_sigterm_all_the_time_ends_with_its_result_and_without_a_state(
    toml: Path, data: Path, tmp_path: Path
) -> None:
    """Five runs were lost when SIGTERM came after the result was written and while the state was being deleted."""
    out = tmp_path / "run"
    words = [str(toml), "small", "2l", "final", "1", "0.01", f"--data={data}", f"--out={out}", "--device=cpu"]
    with subprocess.Popen([sys.executable, "-m", "experiments.language.arm", *words]) as process:
        while not (out / "state" / "step-3").exists() and process.poll() is None:
            time.sleep(0.001)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.0001)
    assert json.loads((out / "result.json").read_text(encoding="utf-8"))["curve"].keys() == {"2", "3"}
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "result.json"]


@pytest.fixture
def study_command(toml: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the arguments of `study` for one arm with one rate and one seed; return its results file."""
    toml.write_text(ONE_ARM, encoding="utf-8")
    results = tmp_path / "results.jsonl"
    command = ["study", f"--study={toml}", f"--data={data}", f"--out={tmp_path}/out", f"--results={results}"]
    monkeypatch.setattr(sys, "argv", command)
    return results


def test_a_result_is_recorded_whatever_the_exit_status(
    study_command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(run: object, *_others: object, **_more: object) -> "subprocess.Popen[bytes]":
        line = json.dumps(result(run, 2.5, seconds=1.0, tokens_per_second=None))  # type: ignore[arg-type]
        folder = tmp_path / "out" / run.name  # type: ignore[attr-defined]
        code = f"""
import os, pathlib
folder = pathlib.Path({str(folder)!r})
folder.mkdir(parents=True)
(folder / "result.json").write_text({line!r})
os.kill(os.getpid(), 15)
"""
        return subprocess.Popen([sys.executable, "-c", code])

    monkeypatch.setattr("experiments.runner.study.start", start)
    assert train_all() == 0
    assert [(line["kind"], line["loss"]) for line in read_results(study_command)] == [("tuning", 2.5), ("final", 2.5)]
    assert capsys.readouterr().out.count("loss 2.5000") == 2


def test_results_that_were_written_but_not_recorded_are_collected_at_the_start(
    study_command: Path, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_arguments: object, **_more: object) -> None:
        raise AssertionError("every result is present")

    monkeypatch.setattr("experiments.runner.study.start", start)
    [tuning] = study.tuning_runs("small", "regular")
    final = study.run("small", "regular", "final", 3, 1e-2)
    for run in (final, tuning):
        (tmp_path / "out" / run.name).mkdir(parents=True)
        line = json.dumps(result(run, 2.5, seconds=1.0, tokens_per_second=None))
        (tmp_path / "out" / run.name / "result.json").write_text(line, encoding="utf-8")
    append_result(study_command, json.dumps(result(tuning, 2.5)))
    assert train_all() == 0
    assert [line["kind"] for line in read_results(study_command)] == ["tuning", "final"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("out", "out: another study is running in .*; wait for it"),
        ("other", "results: another study writes"),
    ],
)
def test_a_second_study_with_the_same_folder_or_results_is_refused(
    study_command: Path, out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would start the same runs, of which one fails, or write at once."""

    def start(*_arguments: object, **_more: object) -> None:
        monkeypatch.setattr(sys, "argv", [*sys.argv, f"--out={tmp_path / out}"])
        with pytest.raises(ValueError, match=f"^{message}"):
            train_all()
        raise Killed

    monkeypatch.setattr("experiments.runner.study.start", start)
    with pytest.raises(Killed):
        train_all()
    assert read_results(study_command) == []


def test_a_result_is_recorded_once(study_command: Path, study: Study, tmp_path: Path) -> None:
    [tuning] = study.tuning_runs("small", "regular")
    (tmp_path / tuning.name).mkdir()
    (tmp_path / tuning.name / "result.json").write_text(json.dumps(result(tuning, 2.5)), encoding="utf-8")
    found = [record(tuning, tmp_path, study_command) for _ in range(2)]
    assert found[0] == found[1] is not None
    assert len(read_results(study_command)) == 1


def test_a_result_under_other_settings_is_not_collected(study_command: Path, study: Study, tmp_path: Path) -> None:
    [tuning] = study.tuning_runs("small", "regular")
    folder = tmp_path / "out" / tuning.name
    folder.mkdir(parents=True)
    stale = result(tuning, 0.5, seconds=1.0, tokens_per_second=None)
    stale["settings"]["training"]["steps"] = 5
    (folder / "result.json").write_text(json.dumps(stale), encoding="utf-8")
    assert train_all() == 0
    assert [line["loss"] != 0.5 for line in read_results(study_command)] == [True, True]


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_trained_run_that_is_killed_while_it_is_measured_is_measured_again_and_not_trained_again(
    toml: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    words = [str(toml), "small", "2l", "final", "0", "0.01", f"--data={data}", f"--out={out}", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", ["arm", *words])

    def killed(*_arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("experiments.language.measure.measure", killed)
        with pytest.raises(Killed):
            train_arm()
    assert not (out / "result.json").exists()
    log = (out / "log.jsonl").read_text(encoding="utf-8")
    (out / "training-seconds").write_text("1000.0")  # of the session that was killed
    train_arm()
    assert json.loads((out / "result.json").read_text(encoding="utf-8"))["training_seconds"] > 1000
    assert not (out / "training-seconds").exists()
    assert (out / "log.jsonl").read_text(encoding="utf-8") == log
    assert list(json.loads((out / "result.json").read_text(encoding="utf-8"))["curve"]) == ["2", "3"]
