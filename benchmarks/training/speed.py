"""Speed, memory, loss and gradients of the training step, for models with and without forks.

    python -m benchmarks.training.speed [--cases 2l/64/fused 2l/64/own] [--profile] [--out FOLDER]
    python -m benchmarks.training.speed --recipe speed --cases 2l/128/fused regular/128/fused

A case is MODEL/BATCH/STEP. Models: `regular` (no forks), `2l` and `4l` (κ = 2L, 4L), of the 124M shape (12 layers,
D = 768, 12 heads, V = 50,304, L = 512, forks before layers 3, 7, 11) or of a recipe's. Steps: `fused`, the one that
`TrainStep` takes on a CUDA device; `own`, the same with `next_token_loss`. Flags of `train` override any setting. Each
case is a process of its own: all compile at once, and each waits in the first operation of its graph until the device
is free, so that no two are timed or tuned together.

Tokens/s are the median of five timings of `--timed-steps` steps, with the lowest and the highest. Below them stand the
losses of two calls with the same weights and windows, and the distance of their gradients from those of the model's own
step in float32, uncompiled, as a part of these' norm: of all together, and of each parameter's. The yardstick is the
distance of the own step in the case's precision, uncompiled. Exits with 1 if a case fails, or if its loss (by more than
1e-4) or all its gradients together are more than three times as far off as the yardstick. A case with dropout is timed
only: no two calls are equal.
"""

import argparse
import fcntl
import math
import os
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TextIO
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.header import header
from benchmarks.shapes import shape_124m
from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.training.config import Precision, TrainConfig
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.flags import add_field_flags, override
from thoughtbubbles.training.flops import flops_per_block
from thoughtbubbles.training.recipes import RECIPES
from thoughtbubbles.training.step import LossFunction, NextTokenLoss, TrainStep, autocast, next_token_loss

CASES = [f"{size}/{step}" for size in ("regular/64", "2l/64", "4l/32") for step in ("fused", "own")] + ["4l/64/fused"]
REPEATS = 5
WORST, LEAST = 3, 1e-4
"""A step's errors may be this many times the yardstick's, and a loss may always be this far off."""
Learned = dict[str, Tensor]
"""The loss and every parameter's gradient, by name."""


def main() -> None:
    """Start a process for each case and print its output when it ends; or, with --case, run one."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.case:
        _run_case(args.case, args)
        return
    print(header(), flush=True)
    running = {case: _start(case, args, niceness=at) for at, case in enumerate(args.cases)}
    failed = False
    while running:
        time.sleep(0.5)
        for case in [case for case, child in running.items() if child.poll() is not None]:
            failed |= running.pop(case).returncode != 0
            print(_file(args.out, case).read_text(encoding="utf-8").rstrip(), flush=True)
    sys.exit(failed)


def _start(case: str, args: argparse.Namespace, *, niceness: int) -> subprocess.Popen[bytes]:
    """Return the process of a case; the nicer it is, the later its compiler gets a processor."""
    command = ["nice", "-n", str(niceness), sys.executable, "-m", "benchmarks.training.speed", *sys.argv[1:]]
    settings = {"TORCHINDUCTOR_COMPILE_THREADS": "3", "OMP_NUM_THREADS": "1"}
    with _file(args.out, case).open("wb") as output:
        environment = {**os.environ, **settings}
        return subprocess.Popen([*command, f"--case={case}"], stdout=output, stderr=output, env=environment)  # noqa: S603


def _file(out: Path, case: str) -> Path:
    return out / f"{case.replace('/', '-')}.txt"


class _Turn(NamedTuple):
    lock: TextIO
    compiled: float
    """When its graph was first run."""


_turn: _Turn | None = None


@torch.library.custom_op("thoughtbubbles::await_turn", mutates_args=())
def await_turn(windows: Tensor) -> Tensor:
    """Return the windows once this process has the device, which it keeps until it ends."""
    global _turn  # noqa: PLW0603 - the lock is the process's
    if _turn is None:
        compiled = time.monotonic()
        lock = Path(os.environ["TURN"]).open("w")  # noqa: SIM115 - closed when the process exits
        fcntl.flock(lock, fcntl.LOCK_EX)
        _turn = _Turn(lock, compiled)
    return windows.clone()


await_turn.register_fake(torch.empty_like)


def _gated(function: LossFunction) -> LossFunction:
    """Return `function` with the wait in its graph: when the graph runs, everything is compiled."""

    def gated(model: Thoughtbubbles, windows: Tensor, *args: Any, **named: Any) -> Tensor:  # noqa: ANN401
        return function(model, await_turn(windows), *args, **named)

    return gated


def _run_case(case: str, args: argparse.Namespace) -> None:
    os.environ["TURN"] = str(args.out / "turn.lock")
    model_name, batch_size, step = case.split("/")
    model_config, config = _configs(model_name, int(batch_size), args)
    device = torch.device(args.device)
    learn = _build(model_config, config, step, device)
    generator = torch.Generator().manual_seed(1)
    length = model_config.block_size
    shape = (args.timed_steps, config.accumulation, config.batch_size, length + 1)
    windows = torch.randint(model_config.vocab_size, shape, generator=generator)
    begin = time.monotonic()
    compared, right = _compare(learn, windows[0, 0].to(device), config) if not config.dropout else ("", True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _timed(learn, windows[:4])
    assert _turn is not None
    tokens = args.timed_steps * config.sequences_per_step * length
    rates = sorted(tokens / _timed(learn, windows) for _ in range(REPEATS))
    flops = median(rates) / length * flops_per_block(model_config) / 1e12
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    print(f"{case:<16} {median(rates):9,.0f} tokens/s ({rates[0]:,.0f} to {rates[-1]:,.0f}), {flops:.0f} TFLOP/s, "
          f"{memory:.1f} GiB, compiled in {_turn.compiled - begin:.0f} s\n{compared}".rstrip())  # fmt: skip
    if args.profile:
        print(_profile(learn, windows[:3], device))
    sys.exit(not right)


def _configs(model_name: str, batch_size: int, args: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    """Return the settings of a case: the recipe's, or the 124M shape's; with those that flags override."""
    if args.recipe:
        model_config, config = RECIPES[args.recipe]()
    else:
        model_config = shape_124m(512)
        config = TrainConfig(steps=1000, batch_size=batch_size, warmup_steps=10, precision="bfloat16", compile=True)
    model_config = override(model_config, args)
    length = model_config.block_size
    if model_name == "regular":
        model_config = replace(model_config, fork_layers=(), max_block_size=length)
    else:
        model_config = replace(model_config, max_block_size=int(model_name.removesuffix("l")) * length)
    return model_config, replace(override(config, args), batch_size=batch_size)


def _build(model_config: ModelConfig, config: TrainConfig, step: str, device: torch.device) -> TrainStep:
    import torch._functorch.config as functorch  # noqa: PLC0415

    functorch.force_non_lazy_backward_lowering = True  # the backward pass too is compiled before the turn
    torch.manual_seed(0)
    ranks = Ranks(device=device)
    with device:
        model = Thoughtbubbles(model_config, dropout=config.dropout)
    if step == "own":
        with patch("thoughtbubbles.training.step.loss_function", return_value=next_token_loss):
            learn = TrainStep(model, config, ranks)
    else:
        learn = TrainStep(model, config, ranks)
    loss = learn._loss  # noqa: SLF001
    assert isinstance(loss, NextTokenLoss)
    assert (loss.function is next_token_loss) == (step == "own")
    loss.function = _gated(loss.function)
    return learn


def _compare(learn: TrainStep, windows: Tensor, config: TrainConfig) -> tuple[str, bool]:
    """Return lines about the first and a later call beside the model's own step, and whether they are near enough."""
    first, _, later = (_learn(learn.model, learn._loss, windows, config.precision) for _ in range(3))  # noqa: SLF001
    exact, yardstick = (_learn_own(learn.model, windows, precision) for precision in ("float32", config.precision))
    learn.model.zero_grad()
    calls = {"first call": first, "later call": later, "own, uncompiled": yardstick}
    errors = {name: _errors(each, exact) for name, each in calls.items()}
    lines = [f"    loss of the own step in float32 {float(exact['loss']):.5f}"]
    for name, each in errors.items():
        *far, (worst, of) = sorted((far, of) for of, far in each.items() if "." in of)
        lines.append(f"    {name:<16} loss {float(calls[name]['loss']):.5f}, gradients off by {each['all']:.1e} "
                     f"together, median {far[len(far) // 2][0]:.1e}, worst {worst:.1e} {of}")  # fmt: skip
    own = errors["own, uncompiled"]
    right = all(each["all"] <= WORST * own["all"] and each["loss"] <= max(WORST * own["loss"], LEAST)
                for each in errors.values())  # fmt: skip
    return "\n".join(lines), right


def _learn(model: Thoughtbubbles, loss: nn.Module, windows: Tensor, precision: Precision) -> Learned:
    model.zero_grad()
    with autocast(windows.device, precision):
        value: Tensor = loss(windows, None, None)
    value.backward()
    return {"loss": value.detach(), **_gradients(model)}


def _learn_own(model: Thoughtbubbles, windows: Tensor, precision: Precision) -> Learned:
    """Return what the oracle learns, uncompiled, a few windows at a time."""
    model.zero_grad()
    total = torch.zeros((), device=windows.device)
    for some in windows.split(8):
        with autocast(windows.device, precision):
            value = next_token_loss(model, some) * (len(some) / len(windows))
        value.backward()
        total += value.detach()
    return {"loss": total, **_gradients(model)}


def _gradients(model: Thoughtbubbles) -> Learned:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _errors(got: Learned, want: Learned) -> dict[str, float]:
    """Return relative distances: of the loss, of each gradient, and of all gradients together."""
    assert got.keys() == want.keys()
    apart = {name: float((got[name] - want[name]).norm()) for name in want}
    norms = {name: float(want[name].norm()) for name in want}
    together = [math.hypot(*(part for name, part in parts.items() if name != "loss")) for parts in (apart, norms)]
    return {name: apart[name] / norms[name] for name in want} | {"all": together[0] / together[1]}


def _timed(learn: TrainStep, windows: Tensor) -> float:
    """Return the seconds of a step for each of windows (steps, accumulation, B, T+1), the device idle around them."""
    _synchronize()
    begin = time.perf_counter()
    for step, batches in enumerate(windows):
        learn(step, batches)
    _synchronize()
    return time.perf_counter() - begin


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _profile(learn: TrainStep, windows: Tensor, device: torch.device) -> str:
    """Return the kernels that take most of the device's time, in microseconds a step."""
    activity = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        _timed(learn, windows)
    times = [(e.self_device_time_total if device.type == "cuda" else e.self_cpu_time_total, e.count, e.key)
             for e in profiler.key_averages()]  # fmt: skip
    parts = sorted(((total / len(windows), count // len(windows), key) for total, count, key in times), reverse=True)
    busy, launches = sum(time for time, _, _ in parts), sum(count for _, count, _ in parts)
    lines = [f"{time:9.0f} {100 * time / busy:5.1f}% {count:4} x {key[:100]}" for time, count, key in parts[:40]]
    return "\n".join([f"    device busy {busy:.0f} us a step, {launches} launches", *lines])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--recipe", choices=RECIPES, help="recipe of model and training (the 124M shape)")
    parser.add_argument("--timed-steps", type=int, default=8, help="in one timing (%(default)s)")
    parser.add_argument("--case", help="run this one in this process; the command starts a process for each")
    parser.add_argument("--out", type=Path, default=Path("runs/train-cases"), help="folder for outputs (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="print where each case's time goes")
    parser.add_argument("--device", default="cuda")
    add_field_flags(parser, ModelConfig)
    add_field_flags(parser, TrainConfig)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc(limit=-6)
        sys.exit(1)
