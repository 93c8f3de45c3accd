"""Training on a mixture: padding has no effect, each set is validated, a stopped run resumes with the next batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.harness import HELD_OUT, MODEL, QUIET, TEXTS, never, stop_after, write_json_lines
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.training.data.loader import PADDING
from thoughtbubbles.training.data.prepare import prepare
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.step import next_token_loss
from thoughtbubbles.training.trainer import Trainer

CPU = Ranks(device=torch.device("cpu"))


@pytest.fixture
def mixture(data: Path, tmp_path: Path) -> Path:
    """Half packed, half padded."""
    for name, texts in (("one", TEXTS[:90]), ("two", TEXTS[90:])):
        sources = [write_json_lines(tmp_path / f"{name}-{i}.jsonl", t) for i, t in enumerate((texts, HELD_OUT))]
        prepare(sources[:1], sources[1:], tmp_path / name, str(data / "tokenizer.tiktoken"))
    path = tmp_path / "mixture.toml"
    path.write_text('[sets.one]\ndata = "one"\nweight = 1\n[sets.two]\ndata = "two"\nweight = 1\nform = "padded"\n')
    return path


def trainer(mixture: Path, out: Path, *, resume: bool = False) -> Trainer:
    return Trainer(MODEL, QUIET, data=mixture, out=out, ranks=CPU, resume=resume)


@pytest.mark.numeric
def test_padding_takes_no_part() -> None:
    """The loss of two padded rows is that of their tokens in rows of their own length, and is one graph."""
    torch.manual_seed(0)
    model = Thoughtbubbles(MODEL)
    windows = torch.randint(MODEL.vocab_size, (2, MODEL.block_size + 1))
    windows[0, 9:] = PADDING
    windows[1, 5:] = PADDING
    nats = sum(next_token_loss(model, windows[i : i + 1, :n]) * (n - 1) for i, n in ((0, 9), (1, 5)))
    loss = torch.compile(next_token_loss, backend="eager", fullgraph=True, dynamic=False)(model, windows, padded=True)
    torch.testing.assert_close(loss, nats / 12)


@pytest.mark.numeric
def test_each_set_is_validated_and_the_mean_by_weight_is_the_loss(mixture: Path, tmp_path: Path) -> None:
    trainer(mixture, tmp_path / "run").run(never)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    validations = [line for line in lines if "val_loss" in line]
    assert len(validations) == 2
    for line in validations:
        assert line["val_loss"] == pytest.approx((line["val_loss/one"] + line["val_loss/two"]) / 2, abs=2e-5)
        assert line["val_loss/one"] != line["val_loss/two"]


def test_a_stopped_run_on_a_mixture_goes_on_as_if_it_never_had(mixture: Path, tmp_path: Path) -> None:
    trainer(mixture, tmp_path / "whole").run(never)
    trainer(mixture, tmp_path / "parts").run(stop_after(3))
    trainer(mixture, tmp_path / "parts", resume=True).run(never)
    whole, parts = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_another_mixture_is_refused_on_resume(mixture: Path, tmp_path: Path) -> None:
    trainer(mixture, tmp_path / "run").run(stop_after(1))
    mixture.write_text(mixture.read_text().replace("weight = 1", "weight = 2", 1))
    with pytest.raises(ValueError, match=r"^resume: weights \(data\) was {'one': 1, 'two': 1} when saved"):
        trainer(mixture, tmp_path / "run", resume=True)
