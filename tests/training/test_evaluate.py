"""The command `evaluate`, on a model whose loss is known."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.training.harness import HELD_OUT, MODEL, VOCAB, write_json_lines
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, save_checkpoint
from thoughtbubbles.training import evaluate
from thoughtbubbles.training.__main__ import main
from thoughtbubbles.training.measures import Score
from thoughtbubbles.training.tasks.evaluation import Outcome


@pytest.fixture
def uniform(data: Path, tmp_path: Path) -> Path:
    """A checkpoint that finds every token equally likely: its (tied) embedding is zero."""
    model = Thoughtbubbles(MODEL)
    torch.nn.init.zeros_(model.transformer.wte.weight)
    save_checkpoint(tmp_path / "uniform", model, Tokenizer.from_file(data / "tokenizer.tiktoken"), {})
    return tmp_path / "uniform"


def test_the_scores_of_a_uniform_model(
    uniform: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_json_lines(tmp_path / "val.jsonl", HELD_OUT)
    assert main(["evaluate", str(uniform), "--data", str(text), "--positions", "4", "--json"]) == 0
    rows = {(row["measure"], row["rule"]): row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    tokens = json.loads((data / "index.json").read_text())["val"]["tokens"] - len(HELD_OUT)
    size = sum(len(text.encode()) for text in HELD_OUT)
    assert {measure for measure, _ in rows} == {"packed", "rolling", "prefix"}
    assert {rule for measure, rule in rows if measure == "prefix"} == {"blockwise", "fixed", "dynamic", "causal"}
    for row in rows.values():
        assert row["loss"] == pytest.approx(math.log(VOCAB))
        assert row["perplexity"] == pytest.approx(VOCAB)
    for rule in ("blockwise", "fixed", "dynamic", "causal"):
        assert rows["rolling", rule]["tokens"] == tokens
        assert rows["rolling", rule]["bits_per_byte"] == pytest.approx(tokens * math.log2(VOCAB) / size)
        assert rows["packed", rule]["tokens"] == tokens + len(HELD_OUT) - 1  # each end-of-text but the first
        assert rows["packed", rule]["bytes"] == size
    assert rows["prefix", "causal"]["tokens"] == 4


def test_json_of_a_model_that_diverged_is_strict(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON has no infinity: `jq` and others refuse a line that has one."""
    model = Thoughtbubbles(MODEL)
    torch.nn.init.normal_(model.transformer.wte.weight, std=1e4)
    save_checkpoint(tmp_path / "diverged", model, Tokenizer.from_file(data / "tokenizer.tiktoken"), {})
    text = str(write_json_lines(tmp_path / "val.jsonl", HELD_OUT[:3]))
    sets = ["--data", text, "--task", "lambada", text, "--rules", "causal"]
    assert main(["evaluate", str(tmp_path / "diverged"), *sets, "--json"]) == 0
    rows = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert [row["perplexity"] for row in rows] == [None] * 3
    assert rows[0]["loss"] > 710
    assert main(["evaluate", str(tmp_path / "diverged"), *sets]) == 0
    assert capsys.readouterr().out.split().count("inf") == 3


def test_the_table_has_a_line_for_each_measure_and_rule(
    uniform: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_json_lines(tmp_path / "val.jsonl", HELD_OUT)
    assert main(["evaluate", str(uniform), "--data", str(text), "--rules", "causal"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["measure", "rule", "loss", "perplexity", "bits/byte", "tokens", "bytes"]
    assert [line[:2] for line in lines[1:]] == [["packed", "causal"], ["rolling", "causal"]]
    assert float(lines[1][2]) == pytest.approx(math.log(VOCAB), abs=1e-4)


@pytest.mark.parametrize(("nats", "loss"), [(1600.0, "800.0"), (math.nan, "null")])
def test_what_is_nan_or_infinite_is_null_in_json(nats: float, loss: str) -> None:
    line = evaluate._json_line(evaluate.Row("packed", "causal", Score(nats, 2, 0)))
    assert line == f'{{"measure": "packed", "rule": "causal", "loss": {loss}, "perplexity": null, "tokens": 2}}'
    line = evaluate._json_outcome("lambada", "causal", Outcome("", 1, {"acc": 0.0, "perplexity": nats * math.inf}))
    assert json.loads(line)["acc"] == 0
    assert '"perplexity": null' in line


def test_what_cannot_be_evaluated_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--data", str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), "data: no text in "),
        (("--positions", "-1"), "positions must be at least 0, not -1"),
        (("--batch-size", "0"), "batch_size must be at least 1, not 0"),
    ],
)
def test_no_table_of_nothing(
    uniform: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "text.txt").write_text("the cat" if flags else "", encoding="utf-8")
    assert main(["evaluate", str(uniform), "--data", str(tmp_path / "text.txt"), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {reason}")
