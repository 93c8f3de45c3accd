"""A study is read whole or refused, done in order of importance, and never done twice."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.study import main as train_all
from benchmarks.study_arm import main as train_arm
from benchmarks.study_plan import Run, Study, read_study
from benchmarks.study_results import missing
from model import Thoughtbubbles
from tests.benchmarks.harness import TINY, result
from training.data.prepare import prepare

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "study.toml"
PAPER = ("regular", "copy-3", "copy-5", "2l", "4l", "regular-large")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, times in (("train", 40), ("val", 3)):
        lines = [f"the {i % 7} bubbles of token {i} fork {j} times" for i in range(times) for j in range(3)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    prepare([folder / "train.txt"], [folder / "val.txt"], folder / "prepared", 320)
    return folder / "prepared"


def parameters(run: Run) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Thoughtbubbles(run.model).parameters())


def test_the_committed_study_compares_what_the_paper_does() -> None:
    """One shape, equal tokens, three seeds; and a regular model of 2.4 times the parameters."""
    study = read_study(COMMITTED)
    assert [run.name for run in study.runs if run.arm in PAPER] == [
        f"{arm}-{seed}" for seed in range(3) for arm in ("regular", "2l", "4l", "copy-3", "copy-5", "regular-large")
    ]
    assert len({run.tokens for run in study.runs}) == 1
    first = {run.arm: run for run in study.runs if run.seed == 0}
    sizes = {arm: parameters(run) / parameters(first["regular"]) for arm, run in first.items()}
    assert sizes.pop("regular-large") == pytest.approx(2.42, abs=0.05)
    assert all(1 <= size < 1.001 for size in sizes.values())
    assert {arm: run.model.ratio for arm, run in first.items() if arm in ("2l", "4l")} == {"2l": 2, "4l": 4}
    assert [first[f"copy-{k}"].model.copies for k in (3, 5)] == [3, 5]


def test_first_seeds_come_first_and_settings_are_the_base_s_but_for_what_the_arm_changes(study: Study) -> None:
    assert [run.name for run in study.runs] == ["regular-0", "2l-0", "noise-5", "regular-1", "2l-1", "regular-2"]
    run = study.find("noise", 5)
    assert (run.training.fork_noise, run.training.seed, run.training.steps, run.tokens) == (1.0, 5, 2, 64)
    assert run.model.fork_layers == (1,)
    assert study.find("regular", 0).model.fork_layers == ()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("fork_noise = 1.0", "fork_nose = 1.0", "arm noise: there is no setting 'fork_nose'"),
        ("fork_noise = 1.0", "fork_noise = -1.0", "arm noise: fork_noise must be at least 0"),
        ("n_layer = 2", "n_layer = 0", "arm regular: n_layer must be"),
        ("seeds = [5]", "", "seeds is missing"),
        ("positions = 12", "position = 12", "position"),
        ('dial = ["2l"]', 'dial = ["4l"]', "there is no arm '4l'"),
        ('than = "2l:fixed"', 'than = "3l:fixed"', "there is no arm '3l'"),
    ],
)
def test_what_cannot_be_used_is_named(toml: Path, old: str, new: str, reason: str) -> None:
    toml.write_text(TINY.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_study(toml)


def test_only_what_has_a_result_under_these_settings_is_left_out(study: Study) -> None:
    other = result(study, "2l", 0, 3.0)
    other["settings"]["training"]["steps"] = 9
    found = json.loads(json.dumps([result(study, "regular", 0, 3.0), other, result(study, "noise", 5, 3.0)]))
    assert [run.name for run in missing(study, found)] == ["2l-0", "regular-1", "2l-1", "regular-2"]


@pytest.mark.parametrize("name", ["regular-1", "2l-1", "noise-5"])
def test_an_arm_is_trained_and_measured(
    name: str, toml: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, arm, seed = tmp_path / "run", name[:-2], int(name[-1])
    monkeypatch.setattr(sys, "argv", ["study_arm", str(toml), arm, str(seed), f"--data={data}", f"--out={out}"])
    train_arm()
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    study = read_study(toml)
    assert found["settings"] == study.settings(study.find(arm, seed))
    assert (found["arm"], found["seed"], found["tokens"]) == (arm, seed, 64)
    assert 0 < found["bits_per_byte"] < found["loss"] < 7
    forks = arm != "regular"
    assert list(found["rules"]) == (["blockwise", "dynamic", "fixed", "causal"] if forks else ["causal"])
    assert list(found["dial"]) == (["1", "2"] if arm in study.report.dial else [])
    if found["dial"]:  # one fork layer at ratio 2: every candidate survives, under every rule
        assert found["dial"]["2"] == pytest.approx(found["loss"], rel=1e-5)
        assert found["dial"]["1"] != pytest.approx(found["loss"], rel=1e-6)


def test_the_command_does_all_and_then_nothing(
    toml: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TINY.partition("[arms.2l]")[0].replace('"2l"', '"regular"').replace("seeds = [0, 1, 2]", "seeds = [3]")
    toml.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["study", f"--study={toml}", f"--data={data}", f"--out={tmp_path}/out"])
    assert train_all() == 0
    told = capsys.readouterr().out
    assert told.startswith("0 of 1 runs have a result; devices: none\n")
    assert "regular-3: loss" in told
    assert train_all() == 0
    assert capsys.readouterr().out == "1 of 1 runs have a result; devices: none\n"
    [line] = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert (json.loads(line)["arm"], json.loads(line)["seed"]) == ("regular", 3)


def test_a_run_that_fails_is_told_with_its_last_words_and_has_no_result(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    nowhere = ["study", f"--study={toml}", "--data=nowhere", f"--out={tmp_path}/out", f"--results={results}"]
    monkeypatch.setattr(sys, "argv", nowhere)
    toml.write_text(TINY.replace("[0, 1, 2]", "[0]").replace("[0, 1]", "[0]").replace("[5]", "[]"), encoding="utf-8")
    assert train_all() == 1
    told = capsys.readouterr().out
    assert told.count("failed, see") == told.count("ValueError: data: nowhere has no index.json") == 2
    assert not results.exists()
