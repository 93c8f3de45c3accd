"""Training at the 124M shape, many variants in one go: which fusion pays, alone and with the others.

    python -m benchmarks.train_cases [--cases 2l/plain/64 2l/all+cudnn/64] [--profile] [--out FOLDER] [--seconds 430]

A case is MODEL/VARIANT/BATCH. Models: `regular`, `2l`, `4l` (κ = 2L, 4L; 12 layers, D = 768, 12 heads, V = 50,304,
L = 512, forks before layers 3, 7, 11). A variant joins names by `+`; `plain` is the step as it stands. Every case is a
process of its own: all compile at once, and each waits in its graph's first operation for its turn on the device,
so that no two are ever timed, or tuned, together. Meanwhile the kernels are checked and timed alone
(`benchmarks.train_kernels`).
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple, TextIO

import torch
from torch import Tensor, nn

from benchmarks.header import header
from model import ModelConfig, Thoughtbubbles
from training.config import TrainConfig
from training.distributed import Ranks
from training.flops import flops_per_block
from training.fused import Fusions
from training.step import TrainStep

KAPPA = {"regular": 512, "2l": 1024, "4l": 2048}
ALL = ("bf16", "forks", "scores", "heads", "norm", "gelu", "head", "clip")
FUSIONS: dict[str, dict[str, object]] = {
    "bf16": {"residual": "bfloat16"},
    "forks": {"forks": True},
    "table": {"heads": "table"},
    "heads": {"heads": "triton"},
    "scores": {"fork_scores": True},
    "norm": {"norm": True},
    "gelu": {"gelu": True},
    "head": {"head": True},
    "rows8k": {"head_rows": 8192},
    "flat": {},
}
SWITCHES = ("plain", "all", "clip", "cudnn", "tuned", "graphs", "lone")
"""`lone`: mix-order reductions off; `tuned`: coordinate descent; `graphs`: CUDA graphs by the compiler."""
BASE = "bf16+forks"
DEFAULT = (
    "2l/all+cudnn/64",
    "regular/all+cudnn/64",
    "4l/all+cudnn/32",
    "2l/plain/64",
    "regular/plain/64",
    "4l/plain/32",
    "2l/all/64",
    f"2l/{BASE}/64",
    f"2l/{BASE}+table/64",
    f"2l/{BASE}+heads/64",
    f"2l/{BASE}+norm/64",
    f"2l/{BASE}+gelu/64",
    f"2l/{BASE}+head/64",
    f"2l/{BASE}+cudnn/64",
    f"2l/{BASE}+scores/64",
    "regular/all+cudnn/128",
    "2l/all+cudnn/96",
    "4l/all+cudnn/64",
    "2l/all+cudnn+rows8k/64",
    "2l/all+cudnn+tuned/64",
)
STEPS, REPEATS = 8, 5


def main() -> None:
    """Start the cases, time the kernels meanwhile, and print a line for each case as it ends."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.case:
        _run_case(args.case, args.out, profile=args.profile)
        return
    begin = time.monotonic()
    print(header(), flush=True)
    running = {case: _start(case, args, patience=at) for at, case in enumerate(args.cases)}
    if not args.no_kernels:
        from benchmarks.train_kernels import measure_kernels  # noqa: PLC0415 - where Triton is

        with _turn(args.out):
            measure_kernels()
    retried = set[str]()
    while running and time.monotonic() - begin < args.seconds:
        time.sleep(0.5)
        for case, child in list(running.items()):
            if child.poll() is None:
                continue
            del running[case]
            print(_told(case, args.out), flush=True)
            if child.returncode and case not in retried:  # once more, with kernels that the compiler leaves alone
                retried.add(case)
                running[case] = _start(case, args, patience=0, opaque=True)
    for case, child in running.items():
        child.kill()
        print(f"{case:<28} not done in {args.seconds} s", flush=True)


def _start(case: str, args: argparse.Namespace, *, patience: int, opaque: bool = False) -> subprocess.Popen[bytes]:
    """A case's process; the more patience, the later its compiler gets a processor."""
    command = [
        "nice",
        "-n",
        str(patience),
        sys.executable,
        "-m",
        "benchmarks.train_cases",
        "--case",
        case,
        "--out",
        str(args.out),
    ]
    command += ["--profile"] if args.profile else []
    settings = {"TORCHINDUCTOR_COMPILE_THREADS": "3", "OMP_NUM_THREADS": "1"}
    settings |= {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    settings |= {"THOUGHTBUBBLES_OPAQUE_KERNELS": "1"} if opaque else {}
    with _file(args.out, case, "log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=log, stderr=log, env={**os.environ, **settings}
        )


def _told(case: str, out: Path) -> str:
    result, log = _file(out, case, "txt"), _file(out, case, "log")
    if result.exists():
        return result.read_text(encoding="utf-8").partition("\n")[0]  # its profile stays in the file
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{case:<28} failed: " + " | ".join(line.strip()[:160] for line in lines[-4:])


def _file(out: Path, case: str, kind: str) -> Path:
    return out / f"{case.replace('/', '-')}.{kind}"


@contextmanager
def _turn(out: Path) -> Iterator[None]:
    """The device to oneself."""
    with (out / "turn.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Gated(nn.Module):
    """The loss, waiting in its first operation for its turn: by then it is compiled."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, windows: Tensor, ratio: float | None, noise: Tensor | None) -> Tensor:
        loss: Tensor = self._loss(await_turn(windows), ratio, noise)
        return loss


class _Turn(NamedTuple):
    lock: TextIO
    compiled: float
    """When its graph was first run."""


_turn_of_process: _Turn | None = None


@torch.library.custom_op("thoughtbubbles::await_turn", mutates_args=())
def await_turn(windows: Tensor) -> Tensor:
    """The windows, once the device is ours; it stays so until the process ends."""
    global _turn_of_process  # noqa: PLW0603 - the lock is the process's
    if _turn_of_process is None:
        compiled = time.monotonic()
        lock = Path(os.environ["TURN"]).open("w")  # noqa: SIM115 - held until the process ends
        fcntl.flock(lock, fcntl.LOCK_EX)
        _turn_of_process = _Turn(lock, compiled)
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)  # the others still compile
    return windows.clone()


await_turn.register_fake(torch.empty_like)


def _run_case(case: str, out: Path, *, profile: bool) -> None:
    os.environ["TURN"] = str(out / "turn.lock")
    model_name, variant, batch_size = case.split("/")
    names = variant.split("+")
    names = [*names, *(ALL if "all" in names else ())]
    if unknown := set(names) - set(FUSIONS) - set(SWITCHES):
        raise ValueError(f"variant: no such names: {', '.join(sorted(unknown))}")
    config = TrainConfig(steps=1000, batch_size=int(batch_size), warmup_steps=10, precision="bfloat16")
    model_config, learn = _build(model_name, names, config)
    generator = torch.Generator().manual_seed(1)
    windows = torch.randint(model_config.vocab_size, (8, config.batch_size, 513), generator=generator)
    begin = time.monotonic()
    first = float(learn(0, [windows[0]]))
    assert _turn_of_process is not None
    compiling = _turn_of_process.compiled - begin
    for step in range(1, 4):
        learn(step, [windows[step]])
    times = [_timed(learn, windows) for _ in range(REPEATS)]
    rate = STEPS * config.batch_size * 512 / median(times)
    spread = (max(times) - min(times)) / median(times)
    flops = rate / 512 * flops_per_block(model_config)
    last = float(learn(50, [windows[0]]))
    memory = torch.cuda.max_memory_allocated() / 2**30
    opaque = ", opaque kernels" if os.environ.get("THOUGHTBUBBLES_OPAQUE_KERNELS") else ""
    line = (f"{case:<28} {rate:9,.0f} tokens/s, spread {100 * spread:.1f}%, {flops / 1e12:.0f} TFLOP/s, "
            f"{memory:.0f} GiB, compiled in {compiling:.0f} s, loss {first:.4f} to {last:.4f}{opaque}")  # fmt: skip
    busiest = _profile(learn, windows) if profile else ""
    _file(out, case, "txt").write_text(line + busiest, encoding="utf-8")


def _build(model_name: str, names: list[str], config: TrainConfig) -> tuple[ModelConfig, TrainStep]:
    kappa = KAPPA[model_name]
    model_config = ModelConfig(
        vocab_size=50_304, block_size=512, max_block_size=kappa, n_layer=12, n_head=12, n_embd=768,
        fork_layers=() if model_name == "regular" else (3, 7, 11),
    )  # fmt: skip
    if "cudnn" in names:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)
    elif "plain" not in names:
        torch.backends.cuda.enable_cudnn_sdp(False)
    chosen = {key: value for name in names for key, value in FUSIONS.get(name, {}).items()}
    flat = any(name in FUSIONS for name in names)
    if flat:  # before the compiler comes upon them
        from training.kernels import cross_entropy, fork_scores, forking, gelu, heads, residual  # noqa: F401, PLC0415
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Thoughtbubbles(model_config)
    learn = TrainStep(
        model, replace(config, compile=False), Ranks(device=torch.device("cuda")),
        fusions=Fusions(**chosen) if flat else None, scaled_clip="clip" in names,  # type: ignore[arg-type]
    )  # fmt: skip
    learn._loss = _compile(_Gated(learn._loss), names)  # noqa: SLF001
    return model_config, learn


def _compile(loss: nn.Module, names: list[str]) -> nn.Module:
    import torch._functorch.config as functorch  # noqa: PLC0415
    import torch._inductor.config as inductor  # noqa: PLC0415

    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        functorch.force_non_lazy_backward_lowering = True  # the way back too is compiled before the turn
    if "lone" in names:
        inductor.triton.mix_order_reduction = False
    inductor.coordinate_descent_tuning = "tuned" in names
    loss.compile(dynamic=False, fullgraph=True, mode="reduce-overhead" if "graphs" in names else None)
    return loss


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
    return "\n".join([f"\n   device busy {busy:.0f} us a step, {launches} launches", *lines])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(DEFAULT))
    parser.add_argument("--case", help="run this one here; what the command does for each")
    parser.add_argument("--out", type=Path, default=Path("runs/train-cases"))
    parser.add_argument("--seconds", type=float, default=430, help="after which what still runs is ended")
    parser.add_argument("--profile", action="store_true", help="write where each case's time goes")
    parser.add_argument("--no-kernels", action="store_true", help="do not check and time the kernels alone")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc(limit=-6)
        sys.exit(1)
