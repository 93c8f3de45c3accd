"""What two ranks do in `test_distributed.py`: torchrun starts them with the folders DATA and OUT and a DEVICE."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from tests.training.harness import MODEL, QUIET, exact_muon, never, stop_after
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.distributed import Ranks, join
from thoughtbubbles.training.step import TrainStep
from thoughtbubbles.training.trainer import Trainer


def main(data: Path, out: Path, device: str) -> None:
    """Whole runs under each way to spread them; one to be resumed by a single process, and one resumed after it."""
    torch.set_num_threads(1)
    with join(device) as ranks:

        def trainer(name: str, config: TrainConfig, *, resume: bool = False, data: Path = data) -> Trainer:
            return Trainer(MODEL, config, data=data, out=out / name, ranks=ranks, resume=resume)

        sharded = replace(QUIET, parallelism="fsdp")
        trainer("ddp", QUIET).run(never)
        trainer("padded", QUIET, data=out / "padded.toml").run(never)
        with patch("torch.compile", partial(torch.compile, backend="eager")):
            _share_graphs(ranks)
            counters.clear()
            whole = trainer("fsdp", replace(sharded, recompute=True, compile=True))
            assert all(isinstance(weights, DTensor) for weights in whole._model.parameters())
            whole.run(never)
            assert not counters["stats"]["unique_graphs"], counters  # depth makes no new ones, nor does validation
        with exact_muon():
            trainer("muon", replace(sharded, optimizer="muon")).run(never)
        trainer("two-then-one", sharded).run(_asked_of_the_last(ranks, 3))
        trainer("one-then-two", sharded, resume=True).run(never)
        with patch("thoughtbubbles.training.data.verification.AT_ONCE_BYTES", 0):
            damaged = trainer("damaged", QUIET, data=out / "damaged-data")
        with pytest.raises(ValueError, match=r"train\.bin is not the file|another process found a file") as failure:
            damaged.run(never)
        (out / f"failure-of-{ranks.rank}.txt").write_text(str(failure.value))


def _share_graphs(ranks: Ranks) -> None:
    """Sharded, every block is one graph, and those alike share it: the first ones, one that forks, those after it."""
    config = replace(QUIET, parallelism="fsdp", compile=True, recompute=True)
    ids = torch.zeros((1, MODEL.block_size + 1), dtype=torch.int64)
    learn = TrainStep(Thoughtbubbles(replace(MODEL, n_layer=12)).to(ranks.device), config, ranks)
    for step in range(2):
        learn(step, [ids, ids])
    assert counters["stats"]["unique_graphs"] == 3, counters
    assert not counters["graph_break"], counters


def _asked_of_the_last(ranks: Ranks, steps: int) -> Callable[[], bool]:
    """SIGTERM may come to one rank before the other."""
    return stop_after(steps) if ranks.rank == ranks.world_size - 1 else never


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
