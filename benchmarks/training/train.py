"""Training speed of the `speed` recipe and of its regular twin (the same without forks), in tokens a second.

    python -m benchmarks.training.train [--recipe speed] [--batch-sizes 64 128] [--timed-steps 20] [--profile]

Each case compiles, warms up, and then times `--timed-steps` whole optimizer steps on random tokens, device idle before
and after. The median of five such timings is printed, and the lowest and highest.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from benchmarks.header import header
from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.flags import add_field_flags, override
from thoughtbubbles.training.recipes import RECIPES
from thoughtbubbles.training.step import TrainStep

REPEATS = 5


def main() -> None:
    """Print a line for each model and batch size."""
    args = _arguments()
    model_config, config = RECIPES[args.recipe]()
    model_config, config = override(model_config, args), override(config, args)
    regular = replace(model_config, fork_layers=(), max_block_size=model_config.block_size)
    print(f"{header()}\n# {config.precision}, {model_config}")
    for batch_size in args.batch_sizes:
        for name, case in (("thoughtbubbles", model_config), ("regular", regular)):
            measure(name, case, replace(config, batch_size=batch_size), args)


def measure(name: str, model_config: ModelConfig, config: TrainConfig, args: argparse.Namespace) -> None:
    """Time one model at one batch size."""
    torch.manual_seed(0)
    torch.compiler.reset()
    device = torch.device("cuda")
    learn = TrainStep(Thoughtbubbles(model_config, dropout=config.dropout).to(device), config, Ranks(device=device))
    ids = torch.randint(model_config.vocab_size, (config.batch_size, model_config.block_size + 1))
    batch = [ids] * config.accumulation
    begin = time.perf_counter()
    _timed_steps(learn, batch, 5)
    warm_up = time.perf_counter() - begin
    tokens = args.timed_steps * config.sequences_per_step * model_config.block_size
    rates = sorted(tokens / _timed_steps(learn, batch, args.timed_steps) for _ in range(REPEATS))
    memory = torch.cuda.max_memory_allocated() / 2**30
    speed = f"{statistics.median(rates):10,.0f} tokens/s ({rates[0]:,.0f} to {rates[-1]:,.0f})"
    size = f"batch {config.batch_size:4} x {model_config.block_size}"
    print(f"{name:<15} {size}: {speed}, {memory:.1f} GiB, warm-up {warm_up:.0f} s", flush=True)
    if args.profile:
        _profile(learn, batch)
    torch.cuda.reset_peak_memory_stats()


def _timed_steps(learn: TrainStep, batch: list[torch.Tensor], steps: int) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for step in range(steps):
        learn(step, batch)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def _profile(learn: TrainStep, batch: list[torch.Tensor]) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        _timed_steps(learn, batch, 3)
    print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=90))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--recipe", choices=RECIPES, default="speed")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--timed-steps", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="print where the device's time goes")
    add_field_flags(parser, ModelConfig)
    add_field_flags(parser, TrainConfig)
    return parser.parse_args()


if __name__ == "__main__":
    main()
