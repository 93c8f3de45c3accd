"""What two ranks do in `test_distributed.py`: `torchrun --nproc-per-node 2 -m tests.training.two_ranks DATA OUT`."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from tests.training.harness import MODEL, QUIET, never, stop_after
from training.config import TrainConfig
from training.distributed import Ranks, join
from training.trainer import Trainer


def main(data: Path, out: Path) -> None:
    """Whole runs under each way to spread them; one to be resumed by a single process, and one resumed after it."""
    torch.set_num_threads(1)
    with join("cpu") as ranks:

        def trainer(name: str, config: TrainConfig, *, resume: bool = False) -> Trainer:
            return Trainer(MODEL, config, data=data, out=out / name, ranks=ranks, resume=resume)

        sharded = replace(QUIET, parallelism="fsdp")
        trainer("ddp", QUIET).run(never)
        whole = trainer("fsdp", replace(sharded, recompute=True))
        assert all(isinstance(weights, DTensor) for weights in whole._model.parameters())
        whole.run(never)
        trainer("muon", replace(sharded, optimizer="muon")).run(never)
        trainer("two-then-one", sharded).run(_asked_of_the_last(ranks, 3))
        trainer("one-then-two", sharded, resume=True).run(never)


def _asked_of_the_last(ranks: Ranks, steps: int) -> Callable[[], bool]:
    """SIGTERM may come to one rank before the other."""
    return stop_after(steps) if ranks.rank == ranks.world_size - 1 else never


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
