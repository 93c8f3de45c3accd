"""What one process does for `benchmarks.training.parallel`; the first writes what was measured to `FOLDER/PART.json`.

torchrun starts it with a part, a folder and the flags of `benchmarks.training.parallel`.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training.parallel import arguments
from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.distributed import Ranks, join
from thoughtbubbles.training.flags import override
from thoughtbubbles.training.recipes import RECIPES
from thoughtbubbles.training.state import RunState
from thoughtbubbles.training.step import TrainStep

REPEATS = 3
WARM_UP = 5


class Rank:
    """A model that is learning from random tokens, the same ones whenever a step is taken."""

    def __init__(self, model_config: ModelConfig, config: TrainConfig, ranks: Ranks) -> None:
        torch.manual_seed(0)
        with ranks.device:  # drawn there: 1.9B parameters take a host a minute
            model = Thoughtbubbles(model_config, dropout=config.dropout)
        self._ranks = ranks
        self._learn = TrainStep(model, config, ranks)
        self._shape = (ranks.share(config.batch_size), model_config.block_size + 1)
        self._batches, self._vocabulary = config.accumulation, model_config.vocab_size
        self.state = model, self._learn.optimizers
        self.tokens_per_step = config.sequences_per_step * model_config.block_size
        self.size = f"{config.sequences_per_step} x {model_config.block_size} tokens a step"

    def steps(self, numbers: range) -> tuple[float, list[float]]:
        """Take steps; seconds that they took, the device idle before and after, and the loss of each over all ranks."""
        self._wait()
        begin = time.perf_counter()
        losses = [self._step(number) for number in numbers]
        self._wait()
        seconds = time.perf_counter() - begin
        return seconds, (self._ranks.total(torch.stack(losses)) / self._ranks.world_size).tolist()

    def gib(self) -> float:
        """The most memory that was allocated on the device."""
        return torch.cuda.max_memory_allocated() / 2**30 if self._ranks.device.type == "cuda" else 0.0

    def _step(self, number: int) -> Tensor:
        assert not self._ranks.any(False)
        generator = torch.Generator().manual_seed(number * self._ranks.world_size + self._ranks.rank)
        draw = (torch.randint(self._vocabulary, self._shape, generator=generator) for _ in range(self._batches))
        return self._learn(number, draw).mean()

    def _wait(self) -> None:
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self._ranks.any(False)


def speed(args: argparse.Namespace, ranks: Ranks, _folder: Path) -> dict[str, Any]:
    """Tokens a second, all ranks together, `--sequences` on each."""
    model_config, config = _recipe(args.recipe, args)
    config = replace(config, batch_size=args.sequences * ranks.world_size, parallelism="ddp")
    rank = Rank(model_config, config, ranks)
    warm_up, _ = rank.steps(range(WARM_UP))
    timings = [rank.steps(range(args.timed_steps))[0] for _ in range(REPEATS)]
    rates = [args.timed_steps * rank.tokens_per_step / seconds for seconds in timings]
    return {"rates": rates, "warm_up": warm_up, "gib": rank.gib(), "size": rank.size}


def learn(args: argparse.Namespace, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Steps of a sharded model; its state is written after half of them, while the others are taken."""
    rank, half = _sharded(args, ranks), args.sharded_steps // 2
    warm_up, losses = rank.steps(range(1))
    seconds, more = rank.steps(range(1, half))
    state = RunState(folder / "state", *rank.state, ranks)
    begin = time.perf_counter()
    state.save({"step": half, "model": {}, "training": {}, "data": {}, "start": None, "best_val_loss": None})
    copied = time.perf_counter() - begin
    _, rest = rank.steps(range(half, args.sharded_steps))
    state.wait()
    written = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in (folder / "state").rglob("*") if path.is_file()) / 2**30
    return {"losses": [*losses, *more, *rest], "rate": (half - 1) * rank.tokens_per_step / seconds, "warm_up": warm_up,
            "copied": copied, "written": written, "state": size, "gib": rank.gib(), "size": rank.size}  # fmt: skip


def resume(args: argparse.Namespace, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The second half of the steps of `learn`, from the state that it wrote."""
    rank = _sharded(args, ranks)
    begin = time.perf_counter()
    first = RunState(folder / "state", *rank.state, ranks).load()["step"]
    read = time.perf_counter() - begin
    return {"read": read, "losses": rank.steps(range(first, args.sharded_steps))[1]}


def _sharded(args: argparse.Namespace, ranks: Ranks) -> Rank:
    model_config, config = _recipe(args.sharded_recipe, args)
    batch_size = args.sharded_sequences * ranks.world_size
    return Rank(model_config, replace(config, batch_size=batch_size, accumulation=1, parallelism="fsdp"), ranks)


def _recipe(name: str, args: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    model_config, config = RECIPES[name]()
    return override(model_config, args), override(config, args)


PARTS = {"speed": speed, "learn": learn, "resume": resume}


def main() -> None:
    """Do one part."""
    part, folder, *argv = sys.argv[1:]
    args = arguments().parse_args(argv)
    with join(args.device) as ranks:
        told = PARTS[part](args, ranks, Path(folder))
        if ranks.first:
            (Path(folder) / f"{part}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
