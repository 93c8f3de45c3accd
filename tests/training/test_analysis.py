"""What `analyse` measures, by hand and against the model's own forward; and what it writes."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.harness import HELD_OUT, VOCAB, write_json_lines
from thoughtbubbles.model import (
    Fork,
    ModelConfig,
    Selection,
    Thoughtbubbles,
    Tokenizer,
    load_checkpoint,
    save_checkpoint,
)
from thoughtbubbles.model.extras import install_command
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training import analyse
from thoughtbubbles.training.__main__ import main
from thoughtbubbles.training.analysis.attention import KEYS, AttentionShares, key_kinds
from thoughtbubbles.training.analysis.budget import budget_rows, score_rows
from thoughtbubbles.training.analysis.lineage import Lineage, lineage
from thoughtbubbles.training.analysis.observed import observed_streams
from thoughtbubbles.training.analysis.tokens import TokenRow, bins, entropies

FORKING = ModelConfig(
    vocab_size=VOCAB, block_size=16, max_block_size=32, n_layer=4, n_head=2, n_embd=16, fork_layers=(1, 3)
)
IDS = torch.randint(VOCAB, (13,), generator=torch.Generator().manual_seed(0))


def lively(config: ModelConfig) -> Thoughtbubbles:
    """Weights several times as large as training starts with, so that streams and attention differ."""
    torch.manual_seed(4)
    model = Thoughtbubbles(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return model


def ignore(layer: int, forks: list[Fork], weights: Tensor) -> None:
    """See nothing."""


@pytest.mark.numeric
@pytest.mark.parametrize("rule", ["blockwise", "causal"])
def test_the_observed_forward_is_the_model_s(rule: Rule) -> None:
    model = lively(FORKING)
    seen = []

    def observe(layer: int, forks: list[Fork], weights: Tensor) -> None:
        assert torch.allclose(weights.sum(-1), torch.ones(()))
        seen.append((layer, len(forks)))

    with torch.inference_mode():
        streams, forks = observed_streams(model, IDS, Selection.of(FORKING, rule), observe)
        expected, recorded = model(IDS[None], rule=rule, return_forks=True)
        torch.testing.assert_close(model.readout(streams), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a.candidate, b.candidate) for a, b in zip(forks, recorded, strict=True))
    assert seen == [(0, 0), (1, 1), (2, 1), (3, 2)]


def test_lineage_tells_forks_of_forks_from_those_of_the_original() -> None:
    """Ratio 4 keeps all: the bubble of a token is fork of fork, fork, fork, original."""
    with torch.inference_mode():
        _, forks = lively(FORKING).streams(IDS[None, :2], Selection.of(FORKING, "causal", 4))
    first = lineage(forks[:1], 2, IDS.device)
    assert (first.token.tolist(), first.parent.tolist()) == ([0, 0, 1, 1], [0, -1, 1, -1])
    both = lineage(forks, 2, IDS.device)
    assert both.token.tolist() == [0] * 4 + [1] * 4
    fork_of_zero, fork_of_one = first.name[0].item(), first.name[2].item()
    assert both.parent.tolist() == [fork_of_zero, 0, 0, -1, fork_of_one, 1, 1, -1]
    assert both.name[both.original].tolist() == [0, 1]
    assert both.name[1].item() == fork_of_zero
    assert len(set(both.name.tolist())) == 8


def test_the_kinds_of_keys_by_hand() -> None:
    streams = Lineage(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([5, 0, 7, 6, 1]), torch.tensor([0, -1, 6, 1, -1]))
    own, siblings, originals, forks = (KEYS.index(name) for name in KEYS[1:])
    assert key_kinds(streams).tolist() == [
        [0, -1, -1, -1, -1],
        [own, 0, -1, -1, -1],
        [forks, originals, 0, -1, -1],
        [forks, originals, own, 0, -1],
        [forks, originals, siblings, own, 0],
    ]


def test_attention_shares_by_hand() -> None:
    """Two tokens with a fork each, and weights that a person can add up."""
    with torch.inference_mode():
        _, forks = lively(FORKING).streams(IDS[None, :2], Selection.of(FORKING, "causal", 2))
    weights = torch.tensor([[[1.0, 0, 0, 0], [0.25, 0.75, 0, 0], [0.5, 0.3, 0.2, 0], [0.1, 0.2, 0.3, 0.4]]])
    shares = AttentionShares(2)
    shares.observe(1, forks[:1], weights)
    rows = {(row.queries, row.keys): row for row in shares.rows()}
    assert rows["originals", "itself"].share == pytest.approx((0.75 + 0.4) / 2)
    assert rows["originals", "own forks"].per_stream == pytest.approx((0.25 + 0.3) / 2)
    assert rows["originals", "other forks"].share == pytest.approx(0.1 / 2)
    assert rows["originals", "other forks"].per_stream == pytest.approx(0.1)
    assert rows["originals", "other originals"].seen_by == 1
    assert math.isnan(rows["originals", "siblings"].per_stream)
    assert sum(rows["originals", keys].share for keys in KEYS) == pytest.approx(1)
    assert rows["forks", "other forks"].share == pytest.approx(0.5 / 2)


@pytest.mark.parametrize("rule", ["blockwise", "causal"])
def test_budget_and_scores_add_up(rule: Rule) -> None:
    selection = Selection.of(FORKING, rule)
    model, lengths = lively(FORKING), [13, 5]
    with torch.inference_mode():
        sequences = [observed_streams(model, IDS[:length], selection, ignore)[1] for length in lengths]
    first, second = budget_rows(sequences, selection, lengths)
    assert first.tokens == second.tokens == 18
    assert first.streams == 18 + first.copies - first.deleted
    assert second.streams == first.streams + second.copies - second.deleted
    assert second.streams <= second.budget
    scores = {(row.layer, row.streams): row for row in score_rows(sequences)}
    assert scores[3, "originals"].number == 18
    assert scores[3, "forks"].number == second.streams - 18
    assert all(0 < row.p05 <= row.p50 <= row.p95 <= 1 for row in scores.values())


def test_entropy_and_its_bins_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5, 1e-30], [1.0, 1e-30, 1e-30]]))
    torch.testing.assert_close(entropies(logits), torch.tensor([math.log(2), 0.0]))
    rows = [TokenRow(0, i, "", (9, i % 2), entropy=float(8 - i), regular_entropy=float(i), loss=0.0) for i in range(8)]
    this, _, regular, _ = bins(rows, 2)
    assert (this.by, this.tokens, this.entropy, this.forks) == ("this model", 4, 2.5, 0.5)
    assert (regular.by, regular.entropy) == ("regular model", 1.5)
    assert this.error == pytest.approx(0.5 / 2)
    assert len(bins([row._replace(regular_entropy=math.nan) for row in rows], 3)) == 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_json_lines(tmp_path / "text.jsonl", HELD_OUT)


@pytest.fixture
def checkpoints(data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model that forks, and a regular one."""
    tokenizer = Tokenizer.from_file(data / "tokenizer.tiktoken")
    regular = ModelConfig(vocab_size=VOCAB, block_size=16, max_block_size=16, n_layer=2, n_head=2, n_embd=16)
    for name, config in (("forking", FORKING), ("regular", regular)):
        save_checkpoint(tmp_path / name, lively(config), tokenizer, {"step": 7})
    return tmp_path / "forking", tmp_path / "regular"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_figures_and_the_data_behind_them(
    checkpoints: tuple[Path, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    forking, regular = checkpoints
    out = tmp_path / "out"
    flags = ["--regular", str(regular), "--tokens", "40", "--text", "the cat is $5", "--out", str(out)]
    assert main(["analyse", str(forking), "--data", str(text), *flags]) == 0
    assert {Path(line).name for line in capsys.readouterr().out.splitlines()} == {path.name for path in out.iterdir()}
    for figure in ("entropy", "attention", "map", "layers"):
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    about = json.loads((out / "analysis.json").read_text())
    tokens = table(out / "tokens.csv")
    assert (about["rule"], about["ratio"], about["step"], about["tokens"]) == ("causal", 2.0, 7, len(tokens))
    assert about["loss"] == pytest.approx(sum(float(row["loss"]) for row in tokens) / len(tokens))
    (_, last) = table(out / "budget.csv")
    assert sum(int(row["forks_layer_3"]) for row in tokens) == int(last["streams"]) - int(last["tokens"])
    encoded = load_checkpoint(forking).tokenizer.encode("the cat is $5")
    assert len(table(out / "map.csv")) == len(encoded)
    assert {row["by"] for row in table(out / "entropy.csv")} == {"this model", "regular model"}


def test_a_budget_without_forks_is_drawn_too(checkpoints: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    flags = ["--data", str(text), "--tokens", "40", "--ratio", "1", "--out", str(tmp_path)]
    assert main(["analyse", str(checkpoints[0]), *flags]) == 0
    assert [row["number"] for row in table(tmp_path / "scores.csv") if row["streams"] == "forks"] == ["0", "0"]
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tokens", "0"], "tokens must be at least 1"),
        (["--bins", "-1"], "bins must be at least 1"),
        (["--ratio", "0.5"], "ratio must be from 1 to"),
    ],
)
def test_what_cannot_be_analysed_is_told_in_one_line(
    flags: list[str], reason: str, checkpoints: tuple[Path, Path], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    assert main(["analyse", str(checkpoints[0]), "--data", str(text), *flags]) == 2
    assert reason in capsys.readouterr().err
    assert main(["analyse", str(checkpoints[1]), "--data", str(text)]) == 2
    assert "no forks to analyse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("forks", "reason"),
    [
        (["2:0:never"], "fork: layer must be a fork layer of the model (1, 3), not 2"),
        (["1:0:never", "9:1:2.5"], "fork: layer must be a fork layer of the model (1, 3), not 9"),
        (["1:99:never"], "fork: position must be below the 7 tokens of the text, not 99"),
        (["1:2:never", "1:2:always"], "fork: layer 1, position 2 is there twice"),
    ],
)
def test_a_fork_that_the_model_or_the_text_lacks_is_named_before_any_work(
    forks: list[str], reason: str, checkpoints: tuple[Path, Path], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    flags = [flag for fork in forks for flag in ("--fork", fork)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(analyse, "study", None)
        assert main(["analyse", str(checkpoints[0]), "--data", str(text), "--text", "the cat is $5", *flags]) == 2
    assert reason in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(checkpoints: tuple[Path, Path], text: Path) -> None:
    command = ["analyse", str(checkpoints[0]), "--data", str(text)]
    code = (
        "import sys; sys.modules['matplotlib'] = None\nfrom thoughtbubbles.training.__main__ import main\n"
        f"sys.exit(main({command}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert install_command("plots") in ended.stderr
