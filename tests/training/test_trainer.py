"""Training runs learn, resume exactly where they stopped, and say why they cannot."""

import json
import math
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from tests.training.harness import MODEL, TEXTS, TRAIN, VOCAB, never, stop_after, write_json_lines
from thoughtbubbles.model import ModelConfig, Tokenizer, load_checkpoint
from thoughtbubbles.training.__main__ import main
from thoughtbubbles.training.config import OptimizerName, TrainConfig
from thoughtbubbles.training.data.prepare import prepare
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.state import latest_state, read_facts
from thoughtbubbles.training.stopping import stop_on_signal
from thoughtbubbles.training.trainer import NOT_FINITE_FILE, STATE_FOLDER, LossNotFiniteError, Trainer

STEPS = 120
FLAGS = [
    "--recipe", "tiny", "--vocab-size", "320", "--block-size", "16", "--max-block-size", "24", "--n-layer", "2",
    "--n-embd", "16", "--fork-layers", "1", "--device", "cpu", "--batch-size", "2", "--dropout", "0.1",
    "--steps", str(STEPS), "--log-every", "1", "--save-every", "1000000", "--validate-every", "1000000",
]  # fmt: skip


def trainer(data: Path, out: Path, config: TrainConfig = TRAIN, *, resume: bool = False) -> Trainer:
    return Trainer(MODEL, config, data=data, out=out, ranks=Ranks(device=torch.device("cpu")), resume=resume)


def state(out: Path) -> dict[str, torch.Tensor]:
    """The tensors of the latest state, by name."""
    path = latest_state(out / STATE_FOLDER)
    metadata = FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {n: torch.empty(m.size) for n, m in metadata.items() if isinstance(m, TensorStorageMetadata)}
    load(tensors, checkpoint_id=path)
    return tensors


def assert_same_state(one: Path, other: Path) -> None:
    """Weights and moments, bit by bit."""
    expected, found = state(one), state(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_goes_on_as_if_it_never_had(data: Path, tmp_path: Path, optimizer: OptimizerName) -> None:
    config = replace(TRAIN, optimizer=optimizer)
    trainer(data, tmp_path / "whole", config).run(never)
    trainer(data, tmp_path / "parts", config).run(stop_after(3))
    torch.rand(7)  # what else the process draws does not matter
    resumed = trainer(data, tmp_path / "parts", config, resume=True)
    assert resumed.step == 3
    resumed.run(never)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_a_state_from_before_a_setting_is_resumed(data: Path, tmp_path: Path) -> None:
    trainer(data, tmp_path, TRAIN).run(stop_after(3))
    facts_file = latest_state(tmp_path / STATE_FOLDER) / "facts.json"
    facts = json.loads(facts_file.read_text())
    del facts["model"]["loops"]
    facts_file.write_text(json.dumps(facts))
    assert trainer(data, tmp_path, TRAIN, resume=True).step == 3


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
    stopped_at = read_facts(tmp_path / "parts" / STATE_FOLDER)["step"]
    assert 3 <= stopped_at < STEPS
    train(tmp_path / "parts", "--resume")
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_a_terminal_that_is_closed_stops_a_run_unless_nohup_keeps_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        for handler, stops in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
            signal.signal(signal.SIGHUP, handler)
            with stop_on_signal() as stopping:
                os.kill(os.getpid(), signal.SIGHUP)
                assert stopping() == stops
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


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
    first.run(stop_after(10))
    for parameter in first._model.parameters():
        parameter.data.mul_(50)
    first.run(never)
    assert load_checkpoint(tmp_path / "run" / "best").provenance["step"] == 10
    assert load_checkpoint(tmp_path / "run" / "checkpoint").provenance["step"] == 30


@pytest.mark.numeric
def test_accumulated_batches_learn_what_one_large_batch_does(data: Path, tmp_path: Path) -> None:
    config = replace(TRAIN, dropout=0.0, steps=3, warmup_steps=1)
    trainer(data, tmp_path / "large", replace(config, batch_size=4, accumulation=1)).run(never)
    trainer(data, tmp_path / "small", replace(config, batch_size=1, accumulation=4)).run(never)
    large, small = (state(tmp_path / name) for name in ("large", "small"))
    for name, tensor in large.items():
        if "exp_avg" in name:  # moments, not weights: Adam's division makes much of a last digit
            torch.testing.assert_close(small[name], tensor, rtol=1e-3, atol=1e-6)


def test_the_gradient_is_clipped(data: Path, tmp_path: Path) -> None:
    """After one step the mean gradient of AdamW is (1 - beta1) times the clipped one."""
    trainer(data, tmp_path / "run", replace(TRAIN, steps=1, warmup_steps=0, decay_fraction=0.0, clip=1e-3)).run(never)
    moments = [t for name, t in state(tmp_path / "run").items() if name.endswith("exp_avg")]
    norm = torch.cat([moment.flatten() for moment in moments]).norm() / (1 - TRAIN.beta1)
    assert norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("log_every", [1, 6])
def test_a_loss_that_is_no_number_stops_with_the_batch_that_caused_it(
    data: Path, tmp_path: Path, log_every: int
) -> None:
    """A token is poison: the first batch that holds it after the second step is the one that is named."""
    poisoned = trainer(data, tmp_path / "run", replace(TRAIN, save_every=2, log_every=log_every, clip=1e30))
    poisoned.run(stop_after(2))
    batches = [
        poisoned._corpus.loader.batch(number, TRAIN.batch_size) for number in range(TRAIN.steps * TRAIN.accumulation)
    ]
    token = int(next(i for i in batches[5][:, :-1].flatten() if i not in batches[4]))
    first = next(n for n, windows in enumerate(batches) if n >= 4 and token in windows[:, :-1])
    assert first > 4, "the first batch of all would be named by mistake as well"
    poisoned._model.transformer.wte.register_forward_hook(
        lambda _, ids, x: torch.where((ids[0] == token)[..., None], torch.nan, x)
    )
    with pytest.raises(LossNotFiniteError, match=rf"the loss of step {first // 2 + 1} is not finite: batch {first}, "):
        poisoned.run(never)
    found = load_file(tmp_path / "run" / NOT_FINITE_FILE)["windows"]
    assert torch.equal(found, batches[first])
    tokenizer = Tokenizer.from_file(data / "tokenizer.tiktoken")
    told = (tmp_path / "run" / NOT_FINITE_FILE).with_suffix(".txt").read_text().splitlines()
    assert list(map(json.loads, told)) == [tokenizer.decode(ids.tolist()) for ids in batches[first]]
    assert read_facts(tmp_path / "run" / STATE_FOLDER)["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state(tmp_path / "run").values())


def test_a_state_is_of_the_moment_it_was_saved_however_long_it_is_written(data: Path, tmp_path: Path) -> None:
    run = trainer(data, tmp_path / "run")
    run.run(stop_after(1))
    before = state(tmp_path / "run")
    run._state.save({**run._facts(), "step": 2})
    for parameter in run._model.parameters():
        parameter.data.fill_(7)
    run._state.wait()
    for name, tensor in state(tmp_path / "run").items():
        assert torch.equal(tensor, before[name]), name
    assert [path.name for path in (tmp_path / "run" / STATE_FOLDER).iterdir()] == ["step-2"]


def test_a_state_that_was_not_written_to_its_end_does_not_count(data: Path, tmp_path: Path) -> None:
    trainer(data, tmp_path / "run").run(stop_after(2))
    torn = tmp_path / "run" / STATE_FOLDER / "step-5"
    torn.mkdir()
    (torn / "facts.json").write_text("{}")
    assert trainer(data, tmp_path / "run", resume=True).step == 2
    shutil.rmtree(tmp_path / "run" / STATE_FOLDER / "step-2")
    assert trainer(data, tmp_path / "run").step == 0, "what was killed before its first state begins anew"


def test_a_run_begins_with_the_weights_of_a_checkpoint(data: Path, tmp_path: Path) -> None:
    trainer(data, tmp_path / "first").run(never)
    start = tmp_path / "first" / "checkpoint"

    def begin(model: ModelConfig) -> Trainer:
        alone = Ranks(device=torch.device("cpu"))
        return Trainer(model, TRAIN, data=data, out=tmp_path / "second", ranks=alone, resume=False, start=start)

    wider = begin(replace(MODEL, max_block_size=32))
    for name, weights in load_checkpoint(start).model.state_dict().items():
        assert torch.equal(wider._model.state_dict()[name], weights), name
    wider.run(stop_after(1))
    assert load_checkpoint(tmp_path / "second" / "checkpoint").provenance["start"] == "checkpoint"
    with pytest.raises(ValueError, match=r"^start: n_head is 2 in .* and 4 here"):
        begin(replace(MODEL, n_head=4))


def test_a_second_run_in_a_folder_is_refused_while_the_first_goes_on(data: Path, tmp_path: Path) -> None:
    """Also before the first has saved a state; once it has ended, however, the folder is free."""
    second = trainer(data, tmp_path / "run")

    def stopping() -> bool:
        with pytest.raises(ValueError, match=r"^out: another run is writing to .*run; stop it, or choose another"):
            second.run(never)
        return True

    trainer(data, tmp_path / "run").run(stopping)
    second.run(stop_after(1))


def test_held_out_text_without_a_token_to_predict_is_refused_before_training(data: Path, tmp_path: Path) -> None:
    texts = write_json_lines(tmp_path / "train.jsonl", TEXTS)
    (tmp_path / "empty.txt").touch()
    prepare([texts], [tmp_path / "empty.txt"], tmp_path / "prepared", str(data / "tokenizer.tiktoken"))
    with pytest.raises(ValueError, match=r"^data: .*val\.bin has nothing to predict: only empty documents"):
        trainer(tmp_path / "prepared", tmp_path / "run")


@pytest.mark.parametrize("name", ["best", "checkpoint"])
def test_a_folder_that_a_checkpoint_may_not_replace_is_refused_before_training(
    data: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").touch()
    with pytest.raises(ValueError, match=f"{name} exists and is not a checkpoint, so it is not replaced"):
        trainer(data, tmp_path)
    assert (tmp_path / name / "notes.txt").exists()


def test_what_does_not_fit_together_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^resume: .* holds no state"):
        trainer(data, tmp_path / "run", resume=True)
    trainer(data, tmp_path / "run").run(stop_after(1))
    with pytest.raises(ValueError, match=r"^out: .* holds a run already; give --resume"):
        trainer(data, tmp_path / "run")
    with pytest.raises(ValueError, match=r"^resume: dropout \(training\) was 0.1 when saved and is 0.2 now"):
        trainer(data, tmp_path / "run", replace(TRAIN, dropout=0.2), resume=True)
    assert trainer(data, tmp_path / "run", replace(TRAIN, log_every=1), resume=True).step == 1
    with pytest.raises(ValueError, match=r"^vocab_size is 8192 where the data's tokenizer has 320 ids"):
        Trainer(
            replace(MODEL, vocab_size=8192),
            TRAIN,
            data=data,
            out=tmp_path,
            ranks=Ranks(device=torch.device("cpu")),
            resume=False,
        )
    with pytest.raises(ValueError, match=r"^data: .* has no index\.json"):
        trainer(tmp_path, tmp_path / "other")
