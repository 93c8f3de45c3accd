"""The log in other tools, read back with their own readers, and the message if they are missing."""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.training.harness import MODEL, QUIET, never
from thoughtbubbles.model.extras import install_command
from thoughtbubbles.training import run_log
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.run_log import RunLog
from thoughtbubbles.training.tracking import tensorboard, weights_and_biases
from thoughtbubbles.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    with tensorboard(tmp_path) as track:
        track(3, {"loss": 2.5})
        track(5, {"loss": 1.5, "val_loss": 4.0})
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 2.5), (5, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("val_loss")] == [(5, 4.0)]


def test_weights_and_biases_takes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with weights_and_biases("bubbles", tmp_path, QUIET.to_dict()) as track:
        track(3, {"loss": 2.5})
        track(5, {"val_loss": 4.0})  # closes step 3
        assert wandb.run.summary["loss"] == 2.5
        assert wandb.run.config["learning_rate"] == QUIET.learning_rate
    assert wandb.run is None


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_an_extra_that_is_not_installed_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    opened = tensorboard(tmp_path) if name == "tensorboard" else weights_and_biases("x", tmp_path, {})
    with pytest.raises(ValueError, match=re.escape(f"{name} is not installed: {install_command(name)}")), opened:
        pass


def test_a_line_goes_to_every_tracker_with_its_utilisation(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    ranks = Ranks(device=torch.device("cpu"))
    with RunLog(
        tmp_path / "log.jsonl", first_step=0, steps=4, tokens_per_step=10, peak=1e9, ranks=ranks,
        trackers=[lambda step, values: told.append((step, dict(values)))],
    ) as log:  # fmt: skip
        log.add_step(torch.tensor([1.0, 3.0]), 4e9)
        log.add_step(torch.tensor([5.0, 7.0]), 4e9)
        log.write_train(2, 0.1)
    [(step, values)] = told
    assert (step, values["loss"], values["tokens"]) == (2, 4.0, 20)
    assert values["mfu"] == pytest.approx(values["tflops"] * 1e12 / 1e9, rel=0.01)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_line_of_the_log_is_strict_json(tmp_path: Path, loss: float) -> None:
    path, ranks = tmp_path / "log.jsonl", Ranks(device=torch.device("cpu"))
    with RunLog(path, first_step=0, steps=4, tokens_per_step=10, peak=None, ranks=ranks, trackers=[]) as log:
        log.write_validation(2, {"val_loss": loss})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"step": 2, "val_loss": None}


@pytest.mark.parametrize("before", [b"", b'{"step": 1, "val_loss": 3.0}\n'])
def test_a_line_that_a_full_disk_cut_off_is_removed_when_a_run_goes_on(tmp_path: Path, before: bytes) -> None:
    path, ranks = tmp_path / "log.jsonl", Ranks(device=torch.device("cpu"))
    path.write_bytes(before + b'{"step": 2, "val_lo')
    with RunLog(path, first_step=2, steps=4, tokens_per_step=10, peak=None, ranks=ranks) as log:
        log.write_validation(2, {"val_loss": 2.0})
    assert path.read_bytes() == before + b'{"step": 2, "val_loss": 2.0}\n'


def test_a_line_has_all_steps_since_the_last_and_no_time_but_theirs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second here, a validation and a save an hour each; some come between two lines."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(run_log, "time", clock)
    for name, seconds in (("_one_step", 1.0), ("_validate", 3600.0), ("_save", 3600.0)):
        monkeypatch.setattr(Trainer, name, _taking(seconds, clock, getattr(Trainer, name)))

    def lines(log_every: int) -> list[dict[str, float]]:
        config = replace(QUIET, steps=12, log_every=log_every, validate_every=3, save_every=5)
        out, ranks = tmp_path / str(log_every), Ranks(device=torch.device("cpu"))
        Trainer(MODEL, config, data=data, out=out, ranks=ranks, resume=False).run(never)
        return [line for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "loss" in line]

    losses = [line["loss"] for line in lines(1)]
    means = [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert [line["loss"] for line in lines(4)] == pytest.approx(means, abs=2e-5)
    assert {line["tokens_per_second"] for line in lines(3)} == {QUIET.sequences_per_step * MODEL.block_size}


def _taking(seconds: float, clock: SimpleNamespace, method: Callable[[Trainer], object]) -> Callable[[Trainer], object]:
    def slow(trainer: Trainer) -> object:
        clock.now += seconds
        return method(trainer)

    return slow
