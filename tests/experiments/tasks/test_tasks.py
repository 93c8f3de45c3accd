"""The study of tasks: what is measured is right by hand, and one command makes, trains, measures and reports it."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.runner.found import by_arm
from experiments.runner.plan import Study, read_study
from experiments.runner.results import read_results
from experiments.tasks.compare import analysed, at_chance, compare
from experiments.tasks.data import FOLDER, byte_tokenizer
from experiments.tasks.data import make as make_data
from experiments.tasks.measure import (
    BEYOND,
    END_OF_TEXT,
    OWN,
    TRAINED,
    Evaluation,
    Problems,
    answer_loss,
    make_test,
    measure_final,
    read,
)
from experiments.tasks.page import section
from experiments.tasks.study import main as train_all
from tests.experiments import made
from tests.experiments.harness import result
from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.training.data.token_file import read_tokenizer, read_tokens
from thoughtbubbles.training.synthetic import TASKS

COMMITTED = Path(__file__).parents[3] / "experiments" / "tasks" / "study.toml"
SMALL = ModelConfig(
    vocab_size=264, block_size=64, max_block_size=128, n_layer=2, n_head=2, n_embd=16, fork_layers=(0, 1)
)
TOY = """
[evaluation]
windows = 12
tuning_windows = 6
ratios = [1, 2, 4]

[base]
vocab_size = 264
block_size = 64
max_block_size = 128
n_layer = 2
n_head = 2
n_embd = 16
fork_layers = [0, 1]
batch_size = 2

[arms.4l]
max_block_size = 256
random_ratio = true
fork_noise = 1.0

[arms.loop-2]
fork_layers = []
max_block_size = 64
loops = 2

[sizes.toy]
data = "stream"
rates = [1e-2]
tuning = { steps = 2, warmup_steps = 1 }
final = { steps = 3, warmup_steps = 1 }

[[stages]]
size = "toy"
arms = ["4l", "loop-2"]
seeds = [0]

[[claims]]
says = "the dial pays"
lower = "4l"
than = "4l"
measure = "deep-beyond"
ratios = [4, 1]

[[claims]]
says = "loops help"
lower = "loop-2"
than = "4l"
measure = "wide"
"""


@pytest.fixture
def problems() -> Problems:
    return make_test(7, 30, 64, TRAINED)


def text(problems: Problems, window: int, first: int, end: int) -> str:
    return bytes(problems.ids[window, first:end].tolist()).decode()


def test_windows_hold_the_segments_that_are_counted_and_their_answers(problems: Problems) -> None:
    assert problems.ids.shape == (30, 65)
    assert (problems.ids[:, 0] == END_OF_TEXT).all()
    assert byte_tokenizer().end_of_text == END_OF_TEXT
    assert set(problems.window.tolist()) == set(range(30))
    first, end = problems.answers
    for each, window, begin, a, b in zip(problems.segments, problems.window, problems.begin, first, end, strict=True):
        assert text(problems, window, begin, begin + len(each.text)) == each.text
        assert text(problems, window, a + 1, b + 1) == each.text.partition("=")[2].rstrip(".")  # targets are one later
    assert torch.equal(problems.ids, make_test(7, 30, 64, TRAINED).ids)


def test_a_model_that_knows_the_answers_makes_no_errors(problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is wrong in a single token of an answer has that answer wrong."""
    model = Thoughtbubbles(SMALL)
    wrong = next(i for i, each in enumerate(problems.segments) if each.task == "permutations")
    spoiled = problems.window[wrong], problems.answers[1][wrong] - 1

    targets = problems.ids[:, 1:].clone()
    targets[spoiled] = ord("?")

    def knows(_ids: torch.Tensor, **_settings: object) -> tuple[torch.Tensor, list[Any]]:
        return 9.0 * torch.nn.functional.one_hot(targets, 264).float(), []

    monkeypatch.setattr(model, "forward", knows)
    found = read(model, problems)
    first, end = problems.answers
    rights = [found.right[w, a:b].all() for w, a, b in zip(problems.window, first, end, strict=True)]
    assert rights.count(False) == 1
    assert not rights[wrong]
    assert answer_loss(problems, found) > 0.005


def test_what_is_measured_of_a_model() -> None:
    torch.manual_seed(0)
    model = Thoughtbubbles(SMALL).eval()
    found = measure_final(model, Path(), Evaluation(windows=40, tuning_windows=1, ratios=[1, 2, 4]), None)  # type: ignore[arg-type]
    json.dumps(found, allow_nan=False)
    assert list(found["errors"]) == list(found["accuracy"]) == [OWN, "1", "2", "4"]
    assert found["errors"][OWN] == found["errors"]["2"]
    counts = np.array(list(found["questions"].values()))
    assert counts.shape == (6, 16)
    assert counts.sum() == sum(len(make_test(4 + i, 40, 64, of).segments) for i, of in enumerate((TRAINED, BEYOND)))
    for task in TASKS:
        for forks, count in zip(found["inside"]["forks"][task], found["questions"][task], strict=True):
            assert (forks is None) == (count == 0)
            assert forks is None or 0 <= forks <= 3
    means = [x for row in found["inside"]["forks"].values() for x in row if x is not None]
    assert 0.5 < np.mean(means) < 1.5  # at ratio 2 a token has one fork on the mean
    untrained = [x for row in found["inside"]["entropy"].values() for x in row if x is not None]
    assert np.mean(untrained) == pytest.approx(np.log(264), rel=0.02)


def test_the_data_are_whole_documents_of_the_trained_difficulties(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 9000, 3000)
    ids = read_tokens(tmp_path / "data", "train")
    assert len(ids) > 9000
    tokenizer = read_tokenizer(tmp_path / "data")
    assert tokenizer.end_of_text == END_OF_TEXT
    documents = bytes(int(i) if i < 256 else 10 for i in ids).decode().split("\n")[1:]
    assert all(len(each) >= 4000 and each.endswith(".") for each in documents)
    assert max(len(part) for each in documents for part in each.split(".")) == 1 + 34 + 1 + 1 + 8 + 2
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "index.json", "tokenizer.tiktoken", "train.bin", "val.bin",
    ]  # fmt: skip


def test_the_committed_study_compares_models_of_one_size() -> None:
    study = read_study(COMMITTED, Evaluation)
    runs = {arm: study.run("2m", arm, "final", 0, 1e-3) for arm in study.arms}
    with torch.device("meta"):
        counts = [sum(p.numel() for p in Thoughtbubbles(run.model).parameters()) for run in runs.values()]
    assert max(counts) < 1.002 * min(counts)
    assert min(counts) == pytest.approx(1.9e6, rel=0.01)
    assert len({run.tokens for run in runs.values()}) == 1
    assert runs["2l"].operations / runs["loop-2"].operations == pytest.approx(1, abs=0.02)
    assert {arm for stage in study.stages for arm in stage.arms} == set(study.arms)
    assert [run.arm for run in study.runs([])][:5] == ["regular", "2l", "scores", "loop-2", "4l"]
    made = measure_names()
    for claim in study.claims:
        assert claim.measure in made
        assert set(claim.ratios or []) <= set(study.evaluation.ratios)


def measure_names() -> set[str]:
    model = Thoughtbubbles(SMALL).eval()
    found = measure_final(model, Path(), Evaluation(windows=1, tuning_windows=1, ratios=[]), None)  # type: ignore[arg-type]
    return set(found["errors"][OWN])


@pytest.fixture
def toy(tmp_path: Path) -> Study:
    (tmp_path / "study.toml").write_text(TOY, encoding="utf-8")
    return read_study(tmp_path / "study.toml", Evaluation)


def test_the_command_trains_measures_and_reports(
    toy: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path / "data" / FOLDER, 5000, 1000)
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["study", f"--study={tmp_path}/study.toml", f"--data={tmp_path}/data",
                                      f"--out={tmp_path}/out", f"--results={results}", "--jobs=2"])  # fmt: skip
    assert train_all() == 0
    assert capsys.readouterr().out.endswith("0 runs without a result are left\n")
    lines = {(line["arm"], line["kind"]): line for line in read_results(results)}
    assert len(lines) == 4
    assert len(lines["4l", "final"]["errors"]) == 4
    assert list(lines["loop-2", "final"]["errors"]) == [OWN]
    assert lines["loop-2", "final"]["settings"]["model"]["loops"] == 2
    found = read_results(results)
    text = "\n\n".join(section(toy, "toy", by_arm(toy, "toy", found), found))
    row = r"\| the dial pays \| `4l` at 4 − `4l` at 1 \| \S+ \| – \| – \| \d of 1 \| is open, one seed \|"
    assert re.search(row, text)
    assert re.search(r"^\| `4l` \| 1 \|( \d+\.\d \|){6}$", text, re.MULTILINE), "the dial"
    assert "judged on the seeds that every arm in them has: 0." in text


def test_claims_are_paired_by_seed_and_corrected(toy: Study) -> None:
    def line(arm: str, seed: int, own: float, **ratios: float) -> dict[str, Any]:
        run = toy.run("toy", arm, "final", seed, 1e-2)
        errors = {OWN: {"wide": own, "deep-beyond": own}} | {
            ratio: {"wide": value, "deep-beyond": value} for ratio, value in ratios.items()
        }
        return result(run, 1.0, errors=errors)

    looped, forked = [0.4, 0.5001, 0.6], [0.5, 0.6, 0.7]
    found = {"loop-2": {seed: line("loop-2", seed, own) for seed, own in enumerate(looped)}}
    ratios = {"4": 0.4, "1": 0.3}
    found["4l"] = {seed: line("4l", seed, own, **(ratios | {"1": 0.3 - 0.1 * seed})) for seed, own in enumerate(forked)}
    dial, loops = compare(toy, "toy", found)
    assert dial.apart == pytest.approx([0.1, 0.2, 0.3])
    assert dial.word == "is open"
    assert loops.apart == pytest.approx([-0.1, -0.0999, -0.1])
    assert loops.word == "holds"
    assert by_arm(toy, "toy", []) == {}
    assert [each.word for each in compare(toy, "toy", {})] == ["not measured", "not measured"]


def test_claims_rest_on_the_seeds_that_every_arm_of_the_first_stage_has() -> None:
    """An arm of a later stage that lacks one of them is in no claim, and is named."""
    study = read_study(COMMITTED, Evaluation)
    first = ("regular", "2l", "scores", "loop-2", "4l")
    seeds = {arm: [0, 1, 2] for arm in first} | {"2l": [0, 1, 2, 3], "1.25l": [0, 1], "loop-3": [0, 1, 2]}
    found = by_arm(study, "2m", made.tasks(study, "2m", seeds, lambda _arm, _seed: 0.5))
    at = analysed(study, "2m", found)
    assert at.seeds == [0, 1, 2]
    assert set(at.found) == {*first, "loop-3"}
    assert at.left_out == [("1.25l", 0), ("1.25l", 1), ("2l", 3)]
    assert all(list(seeds) == [0, 1, 2] for seeds in at.found.values())
    assert analysed(study, "2m", {}).seeds == []


def test_a_task_is_learned_where_guessers_would_not_come() -> None:
    """Of 300 questions a guesser at five digits has 20% right, and in 95% of all tests at most 23.8%."""
    study = read_study(COMMITTED, Evaluation)
    [(_, seeds)] = by_arm(study, "2m", made.tasks(study, "2m", {"regular": [0]}, lambda _arm, _seed: 0.5)).items()
    right = seeds[0]["accuracy"][OWN]
    right["sums"][0], right["lookups"][0], right["hops"][0], right["permutations"][0] = 0.237, 0.239, 0.05, 0.02
    assert at_chance(seeds, 1) == ["sums", "hops"]
