"""Two ranks by torchrun, over gloo or NCCL, train as one does, and either resumes the other's run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.harness import MODEL, QUIET, exact_muon, never, stop_after
from thoughtbubbles.model import load_checkpoint
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.distributed import Ranks, join
from thoughtbubbles.training.state import read_facts
from thoughtbubbles.training.trainer import STATE_FOLDER, Trainer


def alone(data: Path, out: Path, device: str, config: TrainConfig = QUIET, *, resume: bool = False) -> Trainer:
    return Trainer(MODEL, config, data=data, out=out, ranks=Ranks(device=torch.device(device)), resume=resume)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.multi_gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the ranks compute."""
    return str(request.param)


@pytest.fixture(scope="module")
def runs(data: Path, device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of all that two ranks did; `one`, `one-muon` and `one-padded` are a single process's."""
    out = tmp_path_factory.mktemp("runs")
    alone(data, out / "one", device).run(never)
    with exact_muon():
        alone(data, out / "one-muon", device, replace(QUIET, optimizer="muon")).run(never)
    alone(data, out / "one-then-two", device).run(stop_after(3))
    (out / "padded.toml").write_text(f'[sets.a]\ndata = "{data}"\nweight = 1\nform = "padded"\n')
    alone(out / "padded.toml", out / "one-padded", device).run(never)
    shutil.copytree(data, out / "damaged-data")
    flipped = bytearray((data / "train.bin").read_bytes())
    flipped[-1] ^= 1
    (out / "damaged-data" / "train.bin").write_bytes(flipped)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["-m", "tests.training.two_ranks", str(data), str(out), device]
    done = subprocess.run(
        [*launch, *script], check=False, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return out


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("val_loss")) for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Assert equal logged losses and final weights, up to the order of sums."""
    assert losses(other) == pytest.approx(losses(one), rel=1e-4)
    expected, found = (load_checkpoint(run / "checkpoint").model.state_dict() for run in (one, other))
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=2e-3, msg=name)


@pytest.mark.numeric
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_does(runs: Path, parallelism: str) -> None:
    assert len(losses(runs / "one")) == 5  # three lines and two validations
    assert_same_run(runs / "one", runs / parallelism)


@pytest.mark.numeric
def test_muon_steers_sharded_matrices_as_whole_ones(runs: Path) -> None:
    assert_same_run(runs / "one-muon", runs / "muon")


@pytest.mark.numeric
def test_targets_of_all_ranks_count_alike(runs: Path) -> None:
    """Though the documents of one are longer than those of the other."""
    assert_same_run(runs / "one-padded", runs / "padded")


@pytest.mark.numeric
def test_one_goes_on_where_two_stopped(data: Path, runs: Path, device: str) -> None:
    """Only the last rank got the signal, and both stopped."""
    assert read_facts(runs / "two-then-one" / STATE_FOLDER)["step"] == 3
    resumed = alone(data, runs / "two-then-one", device, resume=True)
    assert resumed.step == 3
    resumed.run(never)
    assert_same_run_from(runs / "one", runs / "two-then-one")


@pytest.mark.numeric
def test_two_go_on_where_one_stopped(runs: Path) -> None:
    assert read_facts(runs / "one-then-two" / STATE_FOLDER)["step"] == QUIET.steps
    assert_same_run_from(runs / "one", runs / "one-then-two")


def test_both_stop_where_one_finds_damaged_data(runs: Path) -> None:
    """The first of a machine verifies large files; no rank is left waiting for it."""
    told = [(runs / f"failure-of-{rank}.txt").read_text() for rank in range(2)]
    assert told[0].endswith("train.bin is not the file that was prepared: its sha256 is not the index's")
    assert told[1] == "data: another process found a file that is not what its index says"
    assert not (runs / "damaged" / "checkpoint").exists()


def assert_same_run_from(whole: Path, parts: Path) -> None:
    """A stop cuts a line of the log in two, so the last validation and the weights are compared."""
    assert losses(parts)[-1] == pytest.approx(losses(whole)[-1], rel=1e-4)
    expected, found = (load_checkpoint(run / "checkpoint").model.state_dict() for run in (whole, parts))
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=2e-3, msg=name)


def test_sequences_that_cannot_be_shared_out_are_refused(data: Path, tmp_path: Path) -> None:
    three = Ranks(device=torch.device("cpu"), rank=1, world_size=3)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 ranks, not 2"):
        Trainer(MODEL, QUIET, data=data, out=tmp_path, ranks=three, resume=False)


@pytest.mark.parametrize(("device", "named"), [("gpu", "gpu"), ("cuda", "cuda:99"), ("meta", "meta")])
def test_a_rank_names_a_device_that_it_cannot_use(device: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "100")
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(ValueError, match=f"^device {named} cannot be used: "), join(device):
        pass
