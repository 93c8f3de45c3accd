"""Runs: they learn, they go on exactly where they stopped, and they say why they cannot."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model import load_checkpoint
from tests.training.harness import MODEL, TRAIN, VOCAB
from training.__main__ import main
from training.config import OptimizerName, TrainConfig
from training.state import read_facts
from training.trainer import STATE_FILE, Trainer

STEPS = 120
FLAGS = [
    "--recipe", "tiny", "--vocab-size", "320", "--block-size", "16", "--max-block-size", "24", "--n-layer", "2",
    "--n-embd", "16", "--fork-layers", "1", "--device", "cpu", "--batch-size", "2", "--dropout", "0.1",
    "--steps", str(STEPS), "--log-every", "1", "--save-every", "1000000", "--validate-every", "1000000",
]  # fmt: skip


def trainer(data: Path, out: Path, config: TrainConfig = TRAIN, *, resume: bool = False) -> Trainer:
    return Trainer(MODEL, config, data=data, out=out, device=torch.device("cpu"), resume=resume)


def never() -> bool:
    return False


def after(steps: int) -> Callable[[], bool]:
    """Asks to stop when so many steps are done."""
    asked = iter([False] * steps)
    return lambda: next(asked, True)


def assert_same_state(one: Path, other: Path) -> None:
    """Weights, moments and random state, bit by bit."""
    expected, found = load_file(one / STATE_FILE), load_file(other / STATE_FILE)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_as_if_it_never_had(data: Path, tmp_path: Path, optimizer: OptimizerName) -> None:
    config = replace(TRAIN, optimizer=optimizer)
    trainer(data, tmp_path / "whole", config).run(never)
    trainer(data, tmp_path / "parts", config).run(after(3))
    torch.rand(7)  # what else the process draws does not matter
    resumed = trainer(data, tmp_path / "parts", config, resume=True)
    assert resumed.step == 3
    resumed.run(never)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_sigterm_saves_ends_with_zero_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    """Stopped wherever it happens to be, resumed, and compared with a run that was left alone."""

    def train(out: Path, *more: str) -> None:
        assert main(["train", *FLAGS, "--data", str(data), "--out", str(out), *more]) == 0

    def terminate_after_three_lines() -> None:
        log = tmp_path / "parts" / "log.jsonl"
        while not (log.exists() and log.read_text().count("\n") >= 3):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    train(tmp_path / "whole")
    sender = threading.Thread(target=terminate_after_three_lines)
    sender.start()
    train(tmp_path / "parts")
    sender.join()
    stopped_at = read_facts(tmp_path / "parts" / STATE_FILE)["step"]
    assert 3 <= stopped_at < STEPS
    train(tmp_path / "parts", "--resume")
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_a_run_learns_logs_and_leaves_its_checkpoints(data: Path, tmp_path: Path) -> None:
    config = replace(TRAIN, steps=40, dropout=0.0, validate_every=20, log_every=10)
    trainer(data, tmp_path / "run", config).run(never)
    train = [line for line in lines(tmp_path / "run") if "loss" in line]
    val = [line for line in lines(tmp_path / "run") if "val_loss" in line]
    assert [line["step"] for line in train] == [10, 20, 30, 40]
    assert [line["step"] for line in val] == [20, 40]
    assert train[-1]["loss"] < train[0]["loss"] - 1
    assert val[-1]["val_loss"] < math.log(VOCAB) - 1
    assert train[-1]["tokens"] == 40 * 2 * 2 * MODEL.block_size
    best, latest = (load_checkpoint(tmp_path / "run" / name) for name in ("best", "checkpoint"))
    assert best.provenance["best_val_loss"] == pytest.approx(min(line["val_loss"] for line in val), abs=1e-5)
    assert best.provenance["training"] == config.to_dict()
    assert latest.provenance["step"] == 40
    assert latest.tokenizer.vocab_size == VOCAB


def test_best_is_the_checkpoint_of_the_lowest_validation_loss(data: Path, tmp_path: Path) -> None:
    """A learning rate that destroys the model after the first validation leaves `best/` where it was."""
    first = trainer(data, tmp_path / "run", replace(TRAIN, steps=30, validate_every=10))
    first.run(after(10))
    for parameter in first._model.parameters():
        parameter.data.mul_(50)
    first.run(never)
    assert load_checkpoint(tmp_path / "run" / "best").provenance["step"] == 10
    assert load_checkpoint(tmp_path / "run" / "checkpoint").provenance["step"] == 30


def test_accumulated_batches_learn_what_one_large_batch_does(data: Path, tmp_path: Path) -> None:
    config = replace(TRAIN, dropout=0.0, steps=3, warmup_steps=1)
    trainer(data, tmp_path / "large", replace(config, batch_size=4, accumulation=1)).run(never)
    trainer(data, tmp_path / "small", replace(config, batch_size=1, accumulation=4)).run(never)
    large, small = (load_file(tmp_path / name / STATE_FILE) for name in ("large", "small"))
    for name, tensor in large.items():
        if "exp_avg" in name:  # moments, not weights: Adam's division makes much of a last digit
            torch.testing.assert_close(small[name], tensor, rtol=1e-3, atol=1e-6)


def test_the_gradient_is_clipped(data: Path, tmp_path: Path) -> None:
    """After one step the mean gradient of AdamW is (1 - beta1) times the clipped one."""
    trainer(data, tmp_path / "run", replace(TRAIN, steps=1, warmup_steps=0, decay_fraction=0.0, clip=1e-3)).run(never)
    moments = [t for name, t in load_file(tmp_path / "run" / STATE_FILE).items() if name.endswith("exp_avg")]
    norm = torch.cat([moment.flatten() for moment in moments]).norm() / (1 - TRAIN.beta1)
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_what_does_not_fit_together_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^resume: .*does not exist"):
        trainer(data, tmp_path / "run", resume=True)
    trainer(data, tmp_path / "run").run(after(1))
    with pytest.raises(ValueError, match=r"^out: .* holds a run already; give --resume"):
        trainer(data, tmp_path / "run")
    with pytest.raises(ValueError, match=r"^resume: dropout \(training\) was 0.1 when saved and is 0.2 now"):
        trainer(data, tmp_path / "run", replace(TRAIN, dropout=0.2), resume=True)
    assert trainer(data, tmp_path / "run", replace(TRAIN, log_every=1), resume=True).step == 1
    with pytest.raises(ValueError, match=r"^vocab_size is 8192 where the data's tokenizer has 320 ids"):
        Trainer(
            replace(MODEL, vocab_size=8192), TRAIN, data=data, out=tmp_path, device=torch.device("cpu"), resume=False
        )
    with pytest.raises(ValueError, match=r"^data: .* has no index\.json"):
        trainer(tmp_path, tmp_path / "other")
