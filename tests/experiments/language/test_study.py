"""A study is read whole or refused, done in order of importance, killed and resumed, and never done twice."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.language.arm import main as train_arm
from experiments.language.measure import Evaluation
from experiments.language.study import main as train_all
from experiments.runner.plan import TUNING_SEED, Run, Study, read_study
from experiments.runner.results import append_result, read_results
from tests.experiments.harness import TINY, result
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.training.flops import flops_per_block

RECORDED = Path(__file__).parents[3] / "benchmarks" / "results" / "language.jsonl"
COMMITTED = Path(__file__).parents[3] / "experiments" / "language" / "study.toml"


def parameters(run: Run) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Thoughtbubbles(run.model).parameters())


def finals(study: Study, size: str) -> dict[str, Run]:
    arms = {arm for stage in study.stages if stage.size == size for arm in stage.arms}
    return {arm: study.run(size, arm, "final", 0, 1e-3) for arm in arms}


def tuned(study: Study, arm: str, losses: list[float | None], size: str = "small") -> list[dict[str, object]]:
    return [result(run, loss) for run, loss in zip(study.tuning_runs(size, arm), losses, strict=True)]


@pytest.mark.parametrize("size", ["24m", "24m-4", "64m", "24m-20"])
def test_the_committed_study_compares_like_with_like(size: str) -> None:
    """Equal tokens, equal parameters but for the deeper model, and that of equal operations."""
    study = read_study(COMMITTED, Evaluation)
    runs = finals(study, size)
    assert len({run.tokens for run in runs.values()}) == 1
    deeper, forks, regular = (flops_per_block(runs[arm].model) for arm in ("deeper", "2l", "regular"))
    assert deeper / forks == pytest.approx(1, abs=0.02)
    assert forks / regular > 1.5
    counts = {arm: parameters(run) for arm, run in runs.items() if arm != "deeper"}
    assert max(counts.values()) < 1.001 * min(counts.values())
    per_parameter = runs["2l"].tokens / counts["2l"]
    assert per_parameter >= {"24m": 1.5, "24m-4": 3.9, "64m": 3.9, "24m-20": 19.9}[size]


def test_the_committed_study_begins_with_what_decides_most() -> None:
    study = read_study(COMMITTED, Evaluation)
    arms = [run.arm for run in study.runs([])][:20]
    assert arms == ["regular", "2l", "scores", "deeper", "random"] * 4
    results = [result(run, 3.0) for run in study.runs([])[:20]]
    names = [run.name for run in study.missing(results)]
    assert names[:2] == ["24m-regular-seed-0", "24m-2l-seed-0"]
    assert names[14] == "24m-random-seed-2"
    assert names[15:19] == [f"24m-{arm}-seed-3" for arm in ("regular", "2l", "scores", "random")]
    assert names[23] == "24m-scores-keep-rate-0.0005"


def test_rates_are_chosen_first_and_reported_runs_follow_arm_by_arm(study: Study) -> None:
    assert [run.name for run in study.runs([])] == [
        "small-regular-rate-0.001", "small-2l-rate-0.001", "small-regular-rate-0.01", "small-2l-rate-0.01",
        "small-random-rate-0.001", "small-random-rate-0.01",
    ]  # fmt: skip
    assert {run.training.seed for run in study.runs([])} == {TUNING_SEED}
    results = tuned(study, "regular", [3.0, 2.0])
    waiting = study.missing(results)
    assert [run.name for run in waiting] == [
        "small-2l-rate-0.001", "small-2l-rate-0.01", "small-regular-seed-0", "small-regular-seed-1",
        "small-random-rate-0.001", "small-random-rate-0.01", "wide-regular-seed-0",
    ]  # fmt: skip
    assert {run.training.learning_rate for run in waiting if run.kind == "final"} == {0.01}
    [wide] = [run for run in waiting if run.size == "wide"]
    assert (wide.model.n_embd, wide.model.n_layer, wide.training.steps) == (32, 3, 3)


def test_a_rate_that_diverged_is_never_chosen(study: Study) -> None:
    assert study.best_rate("small", "2l", tuned(study, "2l", [2.0, None])) == 1e-3
    assert study.best_rate("small", "2l", tuned(study, "2l", [2.0, None])[:1]) is None
    with pytest.raises(ValueError, match=r"arm 2l: training diverged at every learning rate: \[0.001, 0.01\]"):
        study.best_rate("small", "2l", tuned(study, "2l", [None, None]))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('select_by = "random"', 'select_bye = "random"', "arm random: there is no setting 'select_bye'"),
        ('select_by = "random"', 'select_by = "chance"', "arm random: select_by must be one of"),
        ("n_layer = 2", "n_layer = 0", "arm regular: n_layer must be"),
        ("rates = [1e-3, 1e-2]", "", "size small: needs rates and tuning, or tuned_at"),
        ('tuned_at = "small"', 'tuned_at = "smal"', "size wide: tuned_at names 'smal', which is no size with rates"),
        ("positions = 12", "position = 12", "position"),
        ('size = "wide"', 'size = "wider"', "there is no size 'wider'"),
        ('arms = ["random"]', 'arms = ["chance"]', "there is no arm 'chance'"),
        ("arms.regular = { n_layer = 3 }", "arms.regula = { n_layer = 3 }", "there is no arm 'regula'"),
        ('than = "regular"', 'than = "irregular"', "there is no arm 'irregular'"),
    ],
)
def test_what_cannot_be_used_is_named(toml: Path, old: str, new: str, reason: str) -> None:
    assert TINY.count(old) == 1
    toml.write_text(TINY.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_study(toml, Evaluation)


def test_only_a_result_under_these_settings_counts(study: Study) -> None:
    results = tuned(study, "regular", [3.0, 2.0])
    run = study.run("small", "regular", "final", 0, 1e-2)
    other_rate = study.run("small", "regular", "final", 0, 1e-3)
    assert run.name not in [each.name for each in study.missing([*results, json.loads(json.dumps(result(run, 1.0)))])]
    assert run.name in [each.name for each in study.missing([*results, result(other_rate, 1.0)])]


def test_a_result_from_before_a_setting_counts(study: Study) -> None:
    run = study.run("small", "regular", "final", 0, 1e-2)
    old = json.loads(json.dumps(result(run, 1.0)))
    del old["settings"]["model"]["loops"]
    assert run.is_of(old)
    assert not run.is_of({**old, "settings": {**old["settings"], "model": {**old["settings"]["model"], "bias": False}}})
    assert not run.is_of({**old, "settings": {**old["settings"], "training": {"epochs": 1}}})


def test_every_recorded_result_is_of_the_committed_study() -> None:
    study, results = read_study(COMMITTED, Evaluation), read_results(RECORDED)
    assert results
    for line in results:
        assert study.run(line["size"], line["arm"], line["kind"], line["seed"],
                         line["settings"]["training"]["learning_rate"]).is_of(line)  # fmt: skip


def test_recorded_losses_are_those_of_the_same_documents() -> None:
    reported = [line for line in read_results(RECORDED) if line["kind"] == "final" and line["loss"] is not None]
    for line in reported:
        assert line["document_tokens"] == reported[0]["document_tokens"]
        assert sum(line["documents"]) / sum(line["document_tokens"]) == pytest.approx(line["loss"], abs=2e-5)


def test_a_line_that_a_kill_cut_off_is_left_out_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_results(path) == []
    append_result(path, '{"a": 1}\n')
    with path.open("a", encoding="utf-8") as file:
        file.write('{"a": 2')
    assert read_results(path) == [{"a": 1}]
    append_result(path, '{"a": 3}')
    append_result(path, '{"a": 1}')  # as a merge of two copies leaves it
    assert read_results(path) == [{"a": 1}, {"a": 3}]


@pytest.fixture
def train(toml: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Path]:
    """Run `study_arm` for an arm, a kind and a rate; gives the run's folder."""

    def run(arm: str, kind: str, rate: str) -> Path:
        out = tmp_path / "run"
        words = [str(toml), "small", arm, kind, "1", rate, f"--data={data}", f"--out={out}", "--device=cpu"]
        monkeypatch.setattr(sys, "argv", ["study_arm", *words])
        train_arm()
        return out

    return run


@pytest.mark.parametrize(
    ("arm", "kind"), [("regular", "final"), ("2l", "final"), ("random", "final"), ("2l", "tuning")]
)
def test_a_run_is_trained_and_measured(
    arm: str, kind: str, train: Callable[[str, str, str], Path], study: Study
) -> None:
    out = train(arm, kind, "0.01")
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    run = study.run("small", arm, kind, 1, 0.01)  # type: ignore[arg-type]
    assert run.is_of(found)
    assert found["tokens"] == run.training.steps * 32
    assert 0 < found["loss"] < 7
    assert not (out / "state").exists()
    if kind == "tuning":
        assert "documents" not in found
        return
    assert list(found["curve"]) == ["2", "3"]
    assert found["curve"]["3"] == pytest.approx(found["blockwise"], abs=2e-5)
    assert len(found["documents"]) == len(found["document_tokens"]) == 6
    assert sum(found["documents"]) / sum(found["document_tokens"]) == pytest.approx(found["loss"], abs=1e-4)
    forks = arm != "regular"
    assert list(found["rules"]) == (["blockwise", "dynamic", "fixed", "causal"] if forks else ["causal"])
    assert list(found["dial"]) == (["1", "2"] if forks else [])
    assert ("forks" in found["inside"]) == forks
    if forks:  # one fork layer at ratio 2: every candidate survives, under every rule, whoever chooses
        assert found["dial"]["2"] == pytest.approx(found["loss"], rel=1e-5)
        assert found["dial"]["1"] != pytest.approx(found["loss"], rel=1e-6)
        assert set("".join(found["inside"]["forks"])) == {"1"}
        assert found["inside"]["budget"][0]["streams"] == found["inside"]["budget"][0]["budget"] == 64


def test_a_run_that_diverges_is_a_result_without_a_loss(train: Callable[[str, str, str], Path]) -> None:
    out = train("2l", "tuning", "1e30")
    assert json.loads((out / "result.json").read_text(encoding="utf-8"))["loss"] is None


def test_the_command_does_all_and_then_nothing(
    toml: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TINY.partition("[[stages]]")[0] + '[[stages]]\nsize = "small"\narms = ["regular"]\nseeds = [3]\n'
    toml.write_text(text.replace("rates = [1e-3, 1e-2]", "rates = [1e-2]"), encoding="utf-8")
    results = tmp_path / "results.jsonl"
    command = ["study", f"--study={toml}", f"--data={data}", f"--out={tmp_path}/out", f"--results={results}"]
    monkeypatch.setattr(sys, "argv", command)
    assert train_all() == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 runs can start; devices: none\n")
    assert "small-regular-rate-0.01: loss" in printed
    assert "small-regular-seed-3: loss" in printed
    assert printed.endswith("0 runs without a result are left\n")
    assert [(line["kind"], line["seed"]) for line in read_results(results)] == [("tuning", 100), ("final", 3)]
    assert train_all() == 0
    assert capsys.readouterr().out.startswith("0 runs can start")
    assert len(read_results(results)) == 2


@pytest.mark.slow
def test_a_study_that_is_stopped_resumes_the_run_that_it_was_at(toml: Path, data: Path, tmp_path: Path) -> None:
    text = TINY.partition("[[stages]]")[0] + '[[stages]]\nsize = "small"\narms = ["regular"]\nseeds = [3]\n'
    text = text.replace("rates = [1e-3, 1e-2]", "rates = [1e-2]").replace(
        "tuning = { steps = 2", "tuning = { steps = 3000"
    )
    toml.write_text(text, encoding="utf-8")
    out, results = tmp_path / "out", tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "experiments.language.study", f"--study={toml}", f"--data={data}", f"--out={out}",
               f"--results={results}"]  # fmt: skip
    log = out / "small-regular-rate-0.01" / "log.jsonl"
    with subprocess.Popen(command) as process:
        while not log.exists() or log.stat().st_size < 1000:
            time.sleep(0.1)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert read_results(results) == []
    stopped_at = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["step"]
    assert stopped_at < 3000
    assert subprocess.run(command, check=False).returncode == 0
    steps = [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert steps.count(1) == 1  # it went on, and did not begin again
    assert steps[-1] == 3000
    assert [line["kind"] for line in read_results(results)] == ["tuning", "final"]


def test_a_run_that_fails_is_reported_with_its_last_lines_and_has_no_result(
    toml: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    text = TINY.partition("[[stages]]")[0] + '[[stages]]\nsize = "small"\narms = ["2l"]\nseeds = [3]\n'
    toml.write_text(text.replace("vocab_size = 320", "vocab_size = 9"), encoding="utf-8")
    command = ["study", f"--study={toml}", f"--data={data}", f"--out={tmp_path}/out", f"--results={results}"]
    monkeypatch.setattr(sys, "argv", command)
    assert train_all() == 1
    printed = capsys.readouterr().out
    assert printed.count("failed, see") == printed.count("ValueError: vocab_size is 9") == 2
    assert read_results(results) == []


def test_runs_whose_data_is_absent_wait(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", f"--study={toml}", "--data=nowhere", f"--out={tmp_path}/out",
                                      f"--results={tmp_path}/results.jsonl"])  # fmt: skip
    assert train_all() == 0
    assert capsys.readouterr().out.startswith("0 runs can start")
