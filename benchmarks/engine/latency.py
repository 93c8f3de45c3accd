"""Decode steps of few requests on a GPU: one kernel for all layers of a segment, against a kernel for each part.

    python -m benchmarks.engine.latency [--batch-sizes 1 16 4]

The 124M shape with random weights, prompts of 128 tokens and 128 greedy ones. Both ways take turns in one engine, in
bfloat16. Prints the median time of a step on the device, from its first kernel to its last, and in the engine, and how
many tokens agree with those of the kernels for each part; and for 1 request in float32, in which engines never take the
one kernel. Other processes first compile what each batch size needs.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.cuda import decode, decode_batch, forward

NEW, PROMPT, RUNS, LEFT_OUT = 128, 128, 3, 8
KINDS = {"a kernel for each part": False, "one kernel a segment": True}
PATIENCE = 58.0
"""Seconds after which nobody waits for float32."""


@dataclass
class Run:
    """How a batch decoded."""

    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    tokens: dict[str, list[int | None]] = field(default_factory=dict)

    def milliseconds(self) -> tuple[float, float]:
        """Return the median of a step on the device, and in the engine."""
        torch.cuda.synchronize()
        device = statistics.median(start.elapsed_time(end) for start, end in self.events[LEFT_OUT:])
        return device, 1e3 * statistics.median(self.steps[LEFT_OUT:])


def main() -> None:
    """Print a line for each batch size and kind of step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 4])
    parser.add_argument("--only", nargs=2, metavar=("DTYPE", "BATCH"), help="compile, and in float32 compare tokens")
    args = parser.parse_args()
    if args.only:
        _only(args.only[0], int(args.only[1]))
        return
    print(header())
    begin, most = time.perf_counter(), max(args.batch_sizes)
    works = [("bfloat16", str(n)) for n in args.batch_sizes] + [("float32", "1")]
    others = [_other(*work) for work in works]
    engine = _engine(torch.bfloat16, most)
    told = [_told(other, PATIENCE - time.perf_counter() + begin) for other in others]
    print(f"compiled after {time.perf_counter() - begin:.0f} s\n")
    print("batch  layers                   device ms  engine ms  tokens/s  tokens alike")
    for batch_size in args.batch_sizes:
        _compare(engine, batch_size)
    for work, text in zip(works, told, strict=True):
        if text:
            print(*work, text.strip()[-900:])
    print(f"done after {time.perf_counter() - begin:.0f} s")


def _other(*work: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.engine.latency", "--only", *work]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603 - ourselves


def _told(other: "subprocess.Popen[str]", seconds: float) -> str:
    """Return what another process prints, which is killed after so many seconds."""
    try:
        return other.communicate(timeout=max(seconds, 1))[0]
    except subprocess.TimeoutExpired:
        other.kill()
        return "took too long"


def _only(dtype: str, batch_size: int) -> None:
    engine = _engine(getattr(torch, dtype), batch_size)
    steps = [_step(engine, batch_size, at_once) for at_once in KINDS.values()]
    if dtype == "float32":
        parts, one = (_decoded(engine, step).tokens for step in steps)
        print(f"{_alike(parts, one)} of {batch_size * NEW} tokens are those of a kernel for each part")


def _compare(engine: Engine, batch_size: int) -> None:
    steps = {kind: _step(engine, batch_size, at_once) for kind, at_once in KINDS.items()}
    runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    for _ in range(RUNS + 1):
        for kind, step in steps.items():
            runs[kind].append(_decoded(engine, step))
    first = next(iter(runs.values()))[-1]
    for kind, each in runs.items():
        times = [run.milliseconds() for run in each[1:]]
        device, whole = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{batch_size:5}  {kind:23}  {device:9.4f}  {whole:9.4f}  {1e3 * batch_size / whole:8,.0f}"
              f"  {_alike(first.tokens, each[-1].tokens)} of {batch_size * NEW}", flush=True)  # fmt: skip


def _alike(one: dict[str, list[int | None]], other: dict[str, list[int | None]]) -> int:
    return sum(a == b for name in one for a, b in zip(one[name], other[name], strict=True))


def _engine(dtype: torch.dtype, batch_size: int) -> Engine:
    """Return an engine whose decode steps are not captured yet, and which prefills in steps of two sizes."""
    model = random_model(512, "cuda", dtype)
    settings = EngineConfig(max_batch_size=batch_size, cache_bytes=batch_size << 27, prefix_caching=False,
                            max_prefill_tokens=8192)  # fmt: skip
    defaults = forward.DeviceForward.__init__.__kwdefaults__
    with (
        patch.dict(defaults, sizes=(PROMPT, max(256, PROMPT * batch_size))),
        patch.object(decode.DecodeStep, "capture", lambda *_: None),
        _few_enough(at_once=False),
    ):
        return Engine(model, numbered_tokens(model.config.vocab_size), settings)


@contextmanager
def _few_enough(*, at_once: bool) -> Iterator[None]:
    with patch.object(decode, "few_enough", lambda *_: at_once):
        yield


def _batch(engine: Engine) -> decode_batch.DeviceBatch:
    return engine.executor.paged.decode  # type: ignore[attr-defined,no-any-return]


def _step(engine: Engine, batch_size: int, at_once: bool) -> decode.DecodeStep:
    batch, sampler = _batch(engine), engine.executor.paged.sampler  # type: ignore[attr-defined]
    with _few_enough(at_once=at_once):
        step = decode.DecodeStep(engine.model, engine.cache, batch.lanes, sampler, batch_size=batch_size)
        step.capture(torch.cuda.Stream())
    return step


def _decoded(engine: Engine, step: decode.DecodeStep) -> Run:
    """Decode with a step, between whose runs nothing else runs on the device."""
    batch, run, number = _batch(engine), Run(), step.batch_size
    batch._steps[number] = step  # noqa: SLF001 - so as to compare two
    batch._counted.setdefault(step, np.zeros((len(engine.cache.segments), 2), np.int64))  # noqa: SLF001
    batch._batch = []  # noqa: SLF001
    replay = step._replay  # noqa: SLF001

    def timed(*, plain: bool) -> None:
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        replay(plain=plain)
        events[1].record()
        run.events.append(events)

    torch.manual_seed(0)
    for i, ids in enumerate(random_prompts(engine.model.config, number, PROMPT)):
        engine.add(str(i), ids, SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0))
    missing = {str(i) for i in range(number)}
    with patch.object(step, "_replay", timed):
        while engine.has_work:
            decoding, start = not missing, time.perf_counter()
            for event in engine.step():
                missing.discard(event.request_id)
                run.tokens.setdefault(event.request_id, []).append(event.token_id)
            if decoding:
                run.steps.append(time.perf_counter() - start)
    return run


if __name__ == "__main__":
    main()
