"""Training at the 124M shape: the step as it ships beside the model's own, in speed, loss and gradients.

    python -m benchmarks.training.speed [--cases 2l/64/fused 2l/64/own] [--profile] [--out FOLDER]

A case is MODEL/BATCH/STEP. Models: `regular`, `2l`, `4l` (κ = 2L, 4L; 12 layers, D = 768, 12 heads, V = 50,304,
L = 512, forks before layers 3, 7, 11). Steps: `fused`, what `TrainStep` takes on a CUDA device; `own`, the same with
`next_token_loss`; both compiled, bfloat16. Every case is a process of its own: all compile at once, and each waits in
its graph's first operation for its turn on the device, so that no two are ever timed, or tuned, together.

Tokens/s are the median of five timings of eight steps, with the lowest and the highest. Below them the losses of two
calls with the same weights and windows, and how far their gradients are from those of the model's own step in float32,
uncompiled, as a part of these' norm: of all together, and of each parameter's. The yardstick is how far the own step in
bfloat16 is, uncompiled. Ends with 1 where a case fails or is more than three times as far off as the yardstick, in
loss (or 1e-4 of it) or in all gradients together.
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
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.training.config import Precision, TrainConfig
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.flops import flops_per_block
from thoughtbubbles.training.step import LossFunction, NextTokenLoss, TrainStep, autocast, next_token_loss

DIFFERENT: dict[str, dict[str, Any]] = {
    "regular": {"fork_layers": (), "max_block_size": 512},
    "2l": {},
    "4l": {"max_block_size": 2048},
}
"""Settings of each model that are not the shape's."""
CASES = [f"{size}/{step}" for size in ("regular/64", "2l/64", "4l/32") for step in ("fused", "own")] + ["4l/64/fused"]
STEPS, REPEATS = 8, 5
WORST, LEAST = 3, 1e-4
"""How many times the yardstick's errors a step's may be, and what a loss may be off at any rate."""
Learned = dict[str, Tensor]
"""The loss and every parameter's gradient, by name."""


def main() -> None:
    """Start the cases and print what each measured as it ends."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.case:
        _run_case(args.case, args.out, profile=args.profile)
        return
    print(header(), flush=True)
    running = {case: _start(case, args, patience=at) for at, case in enumerate(args.cases)}
    failed = False
    while running:
        time.sleep(0.5)
        for case in [case for case, child in running.items() if child.poll() is not None]:
            failed |= running.pop(case).returncode != 0
            print(_file(args.out, case).read_text(encoding="utf-8").rstrip(), flush=True)
    sys.exit(failed)


def _start(case: str, args: argparse.Namespace, *, patience: int) -> subprocess.Popen[bytes]:
    """A case's process; the more patience, the later its compiler gets a processor."""
    command = ["nice", "-n", str(patience), sys.executable, "-m", "benchmarks.training.speed", "--case", case]
    command += ["--out", str(args.out), *(["--profile"] if args.profile else [])]
    settings = {"TORCHINDUCTOR_COMPILE_THREADS": "3", "OMP_NUM_THREADS": "1"}
    with _file(args.out, case).open("wb") as told:
        return subprocess.Popen(command, stdout=told, stderr=told, env={**os.environ, **settings})  # noqa: S603


def _file(out: Path, case: str) -> Path:
    return out / f"{case.replace('/', '-')}.txt"


class _Turn(NamedTuple):
    lock: TextIO
    compiled: float
    """When its graph was first run."""


_turn: _Turn | None = None


@torch.library.custom_op("thoughtbubbles::await_turn", mutates_args=())
def await_turn(windows: Tensor) -> Tensor:
    """The windows, once the device is ours; it stays so until the process ends."""
    global _turn  # noqa: PLW0603 - the lock is the process's
    if _turn is None:
        compiled = time.monotonic()
        lock = Path(os.environ["TURN"]).open("w")  # noqa: SIM115 - held until the process ends
        fcntl.flock(lock, fcntl.LOCK_EX)
        _turn = _Turn(lock, compiled)
    return windows.clone()


await_turn.register_fake(torch.empty_like)


def _gated(function: LossFunction) -> LossFunction:
    """Waits in the graph itself: by the time that runs all is compiled."""

    def gated(model: Thoughtbubbles, windows: Tensor, *args: Any, **named: Any) -> Tensor:  # noqa: ANN401
        return function(model, await_turn(windows), *args, **named)

    return gated


def _run_case(case: str, out: Path, *, profile: bool) -> None:
    os.environ["TURN"] = str(out / "turn.lock")
    model_name, batch_size, step = case.split("/")
    config = TrainConfig(steps=1000, batch_size=int(batch_size), warmup_steps=10, precision="bfloat16", compile=True)
    learn = _build(model_name, step, config)
    generator = torch.Generator().manual_seed(1)
    windows = torch.randint(learn.model.config.vocab_size, (8, config.batch_size, 513), generator=generator)
    begin = time.monotonic()
    compared, right = _compare(learn, windows[0])
    torch.cuda.reset_peak_memory_stats()
    for number in range(4):
        learn(number, [windows[number]])
    assert _turn is not None
    rates = sorted(STEPS * config.batch_size * 512 / _timed(learn, windows) for _ in range(REPEATS))
    flops = median(rates) / 512 * flops_per_block(learn.model.config) / 1e12
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(f"{case:<16} {median(rates):9,.0f} tokens/s ({rates[0]:,.0f} to {rates[-1]:,.0f}), {flops:.0f} TFLOP/s, "
          f"{memory:.0f} GiB, compiled in {_turn.compiled - begin:.0f} s\n{compared}")  # fmt: skip
    if profile:
        print(_profile(learn, windows))
    sys.exit(not right)


def _build(model_name: str, step: str, config: TrainConfig) -> TrainStep:
    import torch._functorch.config as functorch  # noqa: PLC0415

    functorch.force_non_lazy_backward_lowering = True  # the way back too is compiled before the turn
    torch.manual_seed(0)
    ranks = Ranks(device=torch.device("cuda"))
    with ranks.device:
        model = Thoughtbubbles(replace(shape_124m(512), **DIFFERENT[model_name]))
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


def _compare(learn: TrainStep, windows: Tensor) -> tuple[str, bool]:
    """What is told of the first and a later call beside the model's own step, and whether they are near enough."""
    windows = windows.cuda()
    first, _, later = (_learn(learn.model, learn._loss, windows, "bfloat16") for _ in range(3))  # noqa: SLF001
    exact, yardstick = (_learn_own(learn.model, windows, precision) for precision in ("float32", "bfloat16"))
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
    """By the oracle, uncompiled, a few windows at a time."""
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
    """Distances as parts of what is wanted: the loss's, each gradient's, and that of all gradients together."""
    assert got.keys() == want.keys()
    apart = {name: float((got[name] - want[name]).norm()) for name in want}
    norms = {name: float(want[name].norm()) for name in want}
    together = [math.hypot(*(part for name, part in parts.items() if name != "loss")) for parts in (apart, norms)]
    return {name: apart[name] / norms[name] for name in want} | {"all": together[0] / together[1]}


def _timed(learn: TrainStep, windows: Tensor) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for step in range(STEPS):
        learn(step, [windows[step]])
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def _profile(learn: TrainStep, windows: Tensor) -> str:
    """The kernels that take most of the device's time, in microseconds a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for step in range(3):
            learn(step, [windows[step]])
        torch.cuda.synchronize()
    parts = sorted(((e.self_device_time_total / 3, e.count // 3, e.key) for e in profiler.key_averages()), reverse=True)
    busy, launches = sum(time for time, _, _ in parts), sum(count for _, count, _ in parts)
    lines = [f"{time:9.0f} {100 * time / busy:5.1f}% {count:4} x {key[:100]}" for time, count, key in parts[:40]]
    return "\n".join([f"    device busy {busy:.0f} us a step, {launches} launches", *lines])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--case", help="run this one here; what the command does for each")
    parser.add_argument("--out", type=Path, default=Path("runs/train-cases"))
    parser.add_argument("--profile", action="store_true", help="print where each case's time goes")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc(limit=-6)
        sys.exit(1)
