"""Training on several GPUs of one host: DDP against one process, and FSDP2 with a save and a resume.

    python -m benchmarks.training.parallel [--gpus 2] [--parts ddp fsdp] [--recipe speed] [--sequences 128]
                                           [--resume-gpus 2 1]

`ddp` times one process and then `--gpus` of them, with as many sequences on each: optimizer steps on random tokens. As
in training, the ranks agree before every step whether to stop. It prints the median of three timings of `--timed-steps`
steps, the lowest and the highest, and the ratio of the medians.

`fsdp` trains `--sharded-recipe` for `--sharded-steps` steps and writes its state after half of them, while training
continues. New processes then read that state and repeat the second half, once on each number of GPUs in
`--resume-gpus`: the losses should be equal. A step's tokens depend on its number alone.

Flags of `train` override any setting of model and training for both parts. `--device cpu` tries it without a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.header import header
from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.distributed import Ranks, join
from thoughtbubbles.training.flags import add_field_flags, override
from thoughtbubbles.training.flops import flops_per_block, peak_flops
from thoughtbubbles.training.recipes import RECIPES
from thoughtbubbles.training.state import RunState
from thoughtbubbles.training.step import TrainStep

REPEATS = 3
WARM_UP = 5


def main(argv: list[str] | None = None) -> None:
    """Print a line for each result, or as one of torchrun's processes measure one."""
    argv = sys.argv[1:] if argv is None else argv
    args = _arguments().parse_args(argv)
    if args.measure:
        _measure(args)
        return
    print(f"{header()}\n# {args.gpus} of these", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for part in args.parts:
            {"ddp": _ddp, "fsdp": _fsdp}[part](args, [*argv, f"--folder={folder}"])


def _ddp(args: argparse.Namespace, argv: list[str]) -> None:
    medians = []
    for gpus in (1, args.gpus):
        found = _launch("speed", gpus, argv)
        rates = sorted(found["rates"])
        medians.append(statistics.median(rates))
        ratio = f": {medians[1] / medians[0]:.3f} times one" if len(medians) > 1 else ""
        print(
            f"{args.recipe} on {gpus}, {found['size']}: {medians[-1]:,.0f} tokens/s "
            f"({rates[0]:,.0f} to {rates[-1]:,.0f}), {_use(found, medians[-1] / gpus)}{found['gib']:.1f} GiB each, "
            f"warm-up {found['warm_up']:.0f} s{ratio}",
            flush=True,
        )


def _fsdp(args: argparse.Namespace, argv: list[str]) -> None:
    learned = _launch("learn", args.gpus, argv)
    print(
        f"{args.sharded_recipe} on {args.gpus}, {learned['size']}: {learned['rate']:,.0f} tokens/s, "
        f"{_use(learned, learned['rate'] / args.gpus)}{learned['gib']:.1f} GiB each, "
        f"first step {learned['warm_up']:.0f} s; "
        f"its state of {learned['state']:.1f} GiB copied in {learned['copied']:.1f} s and written in "
        f"{learned['written']:.1f} s",
        flush=True,
    )
    for gpus in args.resume_gpus or [args.gpus]:
        resumed = _launch("resume", gpus, argv)
        again = learned["losses"][-len(resumed["losses"]) :]
        apart = max(abs(a - b) for a, b in zip(again, resumed["losses"], strict=True))
        print(
            f"resumed on {gpus}, the state read in {resumed['read']:.1f} s, {resumed['gib']:.1f} GiB each: losses "
            f"{_losses(resumed['losses'])} where they were {_losses(again)}, at most {apart:.1g} apart",
            flush=True,
        )


def _launch(measure: str, gpus: int, argv: list[str]) -> dict[str, Any]:
    """Return what the first of `gpus` processes of torchrun measured."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    script = ["-m", "benchmarks.training.parallel", *argv, f"--measure={measure}"]
    subprocess.run([*launch, *script], check=True, cwd=Path(__file__).parents[2])  # noqa: S603 - our own command line
    folder = _arguments().parse_args(argv).folder
    found: dict[str, Any] = json.loads((folder / f"{measure}.json").read_text(encoding="utf-8"))
    return found


def _use(found: dict[str, Any], rate: float) -> str:
    """Return the share of a GPU's peak that is used at `rate` tokens/s on it, where the peak is known."""
    return f"MFU {rate * found['flops'] / found['peak']:.3f}, " if found["peak"] else ""


def _losses(losses: list[float]) -> str:
    return " ".join(f"{loss:.5f}" for loss in losses)


class Trainee:
    """A model that trains on random tokens: a step's tokens depend on its number alone."""

    def __init__(self, model_config: ModelConfig, config: TrainConfig, ranks: Ranks) -> None:
        torch.manual_seed(0)
        with ranks.device:  # initialised there: 1.9B parameters take a host a minute
            model = Thoughtbubbles(model_config, dropout=config.dropout)
        self._ranks = ranks
        self._learn = TrainStep(model, config, ranks)
        self._shape = (config.batch_size, model_config.block_size + 1)
        first, share = ranks.rank * ranks.share(config.batch_size), ranks.share(config.batch_size)
        self._own = slice(first, first + share)
        self._batches, self._vocabulary = config.accumulation, model_config.vocab_size
        self.speed_of = {
            "flops": flops_per_block(model_config) / model_config.block_size,
            "peak": peak_flops(ranks.device),
        }
        self.state = model, self._learn.optimizers
        self.tokens_per_step = config.sequences_per_step * model_config.block_size
        self.size = f"{config.sequences_per_step} x {model_config.block_size} tokens a step"

    def steps(self, numbers: range) -> tuple[float, list[float]]:
        """Take steps; return their seconds, the device idle before and after, and each loss as the mean over ranks."""
        self._wait()
        begin = time.perf_counter()
        losses = [self._step(number) for number in numbers]
        self._wait()
        seconds = time.perf_counter() - begin
        return seconds, (self._ranks.total(torch.stack(losses)) / self._ranks.world_size).tolist()

    def gib(self) -> float:
        """Return the peak of memory that was allocated on the device."""
        return torch.cuda.max_memory_allocated() / 2**30 if self._ranks.device.type == "cuda" else 0.0

    def _step(self, number: int) -> Tensor:
        assert not self._ranks.any(False)
        generator = torch.Generator().manual_seed(number)
        draw = (
            torch.randint(self._vocabulary, self._shape, generator=generator)[self._own] for _ in range(self._batches)
        )
        return self._learn(number, draw).mean()

    def _wait(self) -> None:
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self._ranks.any(False)


def _measure(args: argparse.Namespace) -> None:
    """Measure as one of torchrun's processes; the first writes the result to FOLDER/MEASURE.json."""
    with join(args.device) as ranks:
        found = MEASURES[args.measure](args, ranks)
        if ranks.first:
            (args.folder / f"{args.measure}.json").write_text(json.dumps(found), encoding="utf-8")


def _speed(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Return the tokens/s of all ranks together, `--sequences` on each."""
    model_config, config = _recipe(args.recipe, args)
    config = replace(config, batch_size=args.sequences * ranks.world_size, parallelism="ddp")
    trainee = Trainee(model_config, config, ranks)
    warm_up, _ = trainee.steps(range(WARM_UP))
    timings = [trainee.steps(range(args.timed_steps))[0] for _ in range(REPEATS)]
    rates = [args.timed_steps * trainee.tokens_per_step / seconds for seconds in timings]
    return {"rates": rates, "warm_up": warm_up, "gib": trainee.gib(), "size": trainee.size, **trainee.speed_of}


def _train(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Return losses and times of a sharded model whose state is written after half of its steps."""
    trainee, half = _sharded(args, ranks), args.sharded_steps // 2
    warm_up, losses = trainee.steps(range(1))
    seconds, more = trainee.steps(range(1, half))
    state = RunState(args.folder / "state", *trainee.state, ranks)
    begin = time.perf_counter()
    state.save({"step": half, "model": {}, "training": {}, "data": {}, "start": None, "best_val_loss": None})
    copied = time.perf_counter() - begin
    _, rest = trainee.steps(range(half, args.sharded_steps))
    state.wait()
    written = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in (args.folder / "state").rglob("*") if path.is_file()) / 2**30
    return {"losses": [*losses, *more, *rest], "rate": (half - 1) * trainee.tokens_per_step / seconds,
            "warm_up": warm_up, "copied": copied, "written": written, "state": size, "gib": trainee.gib(),
            "size": trainee.size, **trainee.speed_of}  # fmt: skip


def _resume(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Return the losses of the second half of the steps, from the state that `_train` wrote."""
    trainee = _sharded(args, ranks)
    begin = time.perf_counter()
    first = RunState(args.folder / "state", *trainee.state, ranks).load()["step"]
    read = time.perf_counter() - begin
    losses = trainee.steps(range(first, args.sharded_steps))[1]
    return {"read": read, "losses": losses, "gib": trainee.gib()}


MEASURES = {"speed": _speed, "learn": _train, "resume": _resume}


def _sharded(args: argparse.Namespace, ranks: Ranks) -> Trainee:
    model_config, config = _recipe(args.sharded_recipe, args)
    batch_size = args.sharded_sequences * args.gpus  # also where fewer resume
    return Trainee(model_config, replace(config, batch_size=batch_size, accumulation=1, parallelism="fsdp"), ranks)


def _recipe(name: str, args: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    model_config, config = RECIPES[name]()
    return override(model_config, args), override(config, args)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=("ddp", "fsdp"), default=("ddp", "fsdp"))
    parser.add_argument("--recipe", choices=RECIPES, default="speed", help="of the part ddp (%(default)s)")
    parser.add_argument("--sequences", type=int, default=128, help="on each GPU, of the part ddp (%(default)s)")
    parser.add_argument("--timed-steps", type=int, default=20, help="in one timing (%(default)s)")
    parser.add_argument("--sharded-recipe", choices=RECIPES, default="1.9b", help="of the part fsdp (%(default)s)")
    parser.add_argument("--sharded-steps", type=int, default=8, help="of the part fsdp (%(default)s)")
    parser.add_argument("--sharded-sequences", type=int, default=16, help="on each GPU, of fsdp (%(default)s)")
    parser.add_argument("--resume-gpus", type=int, nargs="+", help="of the part fsdp, numbers of GPUs (as --gpus)")
    parser.add_argument("--folder", type=Path, help="for states, 12 bytes a parameter, removed at the end (/tmp)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--measure", choices=("speed", "learn", "resume"), help="what torchrun's processes measure")
    add_field_flags(parser, ModelConfig)
    add_field_flags(parser, TrainConfig)
    return parser


if __name__ == "__main__":
    main()
