"""Decode steps of few requests on a GPU: one kernel for all layers of a segment, against a kernel for each part.

    python -m benchmarks.engine.latency [--batch-sizes 1 16 64]

The 124M shape with random weights, prompts of 128 tokens and 128 greedy ones, both in the same engine by turns. Prints
the time of a step on the device, between its first kernel and its last, and in the engine, and how many tokens the two
agree on: in bfloat16, which rounds, and for 1 request in float32, in which the server never takes the one kernel.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.cuda import decode, forward
from thoughtbubbles.engine.cuda.kernels import persistent
from thoughtbubbles.engine.cuda.kernels.barrier import arrive, first_goal, wait

NEW, PROMPT = 128, 128
VARIANTS: dict[str, dict[str, Any]] = {
    "parts": {"MOST_ROWS": 0},
    "one kernel": {"MOST_ROWS": 128},
    "4 warps, 2 each": {"MOST_ROWS": 128, "WARPS": 4, "EACH": 2},
    "clocks": {"MOST_ROWS": 128, "CLOCKS": True},
}
NAMES = {1: list(VARIANTS), 16: list(VARIANTS), 64: ["parts", "one kernel"]}


def compile_one(name: str, batch_size: int) -> None:
    """Fill Triton's cache with what a step of this variant needs."""
    from thoughtbubbles.engine.cuda.kernels.attention import Parts
    from thoughtbubbles.engine.cuda.kernels.rows import Rows
    from thoughtbubbles.engine.cuda.step import usual_rows
    from thoughtbubbles.model.transformer import Block
    from benchmarks.shapes import shape_124m
    import triton

    config, done = shape_124m(512), set()
    settings = settings_of(name)
    with patched(persistent, **settings), torch.device("cuda"), torch.inference_mode():
        block = Block(config, 0.0).bfloat16()
        block.eval()
        team = persistent.Team.on(torch.device("cuda"))
        splits = min(16, triton.next_power_of_2(max(1, team.programs // (batch_size * 12))))
        for i in range(4):
            usual, most = usual_rows(config, batch_size, i), batch_size << i
            if (usual > 16) in done:
                continue
            done.add(usual > 16)
            lane = torch.full((batch_size,), -1, dtype=torch.int32)
            rows = Rows.zeros(lane, torch.zeros((4, 67), dtype=torch.int32), page_size=16, rows=most, most=1 << i, usual=usual, half=32)
            cached = torch.zeros((1, 12, 32, 64), dtype=torch.bfloat16)
            table = persistent.LayerTable.of([block], cached, cached.clone())
            x = torch.zeros((most, 768), dtype=torch.bfloat16)
            persistent.run_at_once(table=table, team=team, x=x, rows=rows, queries=torch.zeros((most, 12, 64), dtype=torch.bfloat16),
                attended=x.clone(), hidden=torch.zeros((most, 3072), dtype=torch.bfloat16),
                parts=Parts.empty(batch_size, most, 12, 64, splits, torch.device("cuda")))
    torch.cuda.synchronize()


def settings_of(name: str) -> dict[str, Any]:
    settings = dict(VARIANTS[name])
    if settings.get("CLOCKS"):
        settings["CLOCKS"] = torch.zeros((4, 10, 132), dtype=torch.int64, device="cuda")
    return settings


@dataclass
class Run:
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def device(self) -> float:
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in self.events[8:])

    def host(self) -> float:
        return 1e3 * statistics.median(self.steps[8:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--compile", nargs=2)
    parser.add_argument("--float32", action="store_true")
    args = parser.parse_args()
    if args.compile:
        return compile_one(args.compile[0], int(args.compile[1]))
    print(header())
    begin = time.perf_counter()
    jobs = {(name, n): subprocess.Popen([sys.executable, "-m", "benchmarks.engine.latency", "--compile", name, str(n)],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for n in args.batch_sizes for name in NAMES[n] if name != "parts"}
    first = make_engine(random_model(512, "cuda", torch.bfloat16), args.batch_sizes[0])
    print(f"# engine made after {time.perf_counter() - begin:.0f} s", flush=True)
    for key, job in jobs.items():
        try:
            text = job.communicate(timeout=60)[0]
        except subprocess.TimeoutExpired:
            job.kill()
            text = "timed out " + job.communicate()[0]
        if job.returncode:
            print(key, job.returncode, text[-1500:])
    print(f"# compiled after {time.perf_counter() - begin:.0f} s", flush=True)
    barriers()
    lines = []
    for batch_size in args.batch_sizes:
        lines += compare(batch_size, torch.bfloat16, NAMES[batch_size], first)
        first = None
        print(f"# {batch_size} after {time.perf_counter() - begin:.0f} s", flush=True)
    try:
        if args.float32:
            lines += compare(1, torch.float32, ["parts", "one kernel"], None)
    except Exception as error:  # noqa: BLE001
        lines.append(f"float32: {type(error).__name__}: {str(error)[:300]}")
    print(f"# all after {time.perf_counter() - begin:.0f} s")
    print("batch  dtype  variant  device ms  engine ms  tokens/s  tokens alike")
    print("\n".join(lines))


@triton.jit
def _only_barriers(arrivals, TIMES: tl.constexpr, PROGRAMS: tl.constexpr):
    goal = first_goal(arrivals, PROGRAMS)
    for _ in range(TIMES):
        arrive(arrivals, PROGRAMS)
        goal = wait(arrivals, goal, PROGRAMS)


def barriers() -> None:
    for programs in (66, 132, 264):
        arrivals, times = torch.zeros(1, dtype=torch.int64, device="cuda"), []
        for _ in range(7):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            _only_barriers[(programs,)](arrivals=arrivals, TIMES=200, PROGRAMS=programs, num_warps=8 if programs < 200 else 4,
                                        launch_cooperative_grid=True)
            end.record()
            end.synchronize()
            times.append(1e3 * start.elapsed_time(end) / 200)
        print(f"barrier of {programs} programs: {min(times):.3f} us", flush=True)


def clocks_of(clocks: torch.Tensor) -> str:
    """Cycles of each stage, of the median and the slowest program, and of the barrier after the slowest."""
    names, text = ["heads", "attend", "proj", "gelu", "mlp"], []
    c = clocks.cpu()
    for layer in (1, 2):
        before = c[layer - 1, 9]
        for k, name in enumerate(names):
            work, waited = c[layer, 2 * k] - before, c[layer, 2 * k + 1] - c[layer, 2 * k]
            before = c[layer, 2 * k + 1]
            text.append(f"{name} {work.median().item()}/{work.max().item()} +{waited.min().item()}")
        text.append("|")
    return "  ".join(text)


def compare(batch_size: int, dtype: torch.dtype, variants: list[str], engine: Engine | None) -> list[str]:
    engine = engine or make_engine(random_model(512, "cuda", dtype), batch_size)
    model = engine.model
    torch.manual_seed(0)
    prompts = random_prompts(model.config, batch_size, PROMPT)
    lines, first = [], None
    for name in variants:
        try:
            settings = settings_of(name)
            install(engine, batch_size, settings, dtype)
            run = max((decoded(engine, batch_size, prompts) for _ in range(3)), key=lambda each: -each.device())
        except Exception as error:  # noqa: BLE001
            lines.append(f"{batch_size:5}  {name}: {type(error).__name__}: {str(error)[:300]}")
            if "CUDA error" in str(error):
                raise
            engine = make_engine(model, batch_size)
            continue
        first = first or run
        if name == "clocks":
            print(f"# clocks {batch_size}: {clocks_of(settings['CLOCKS'])}")
        elif batch_size < 64:
            print(f"# profile {batch_size} {name}: {profiled(engine, batch_size, prompts)}", flush=True)
        alike = sum(a == b for i in run.tokens for a, b in zip(run.tokens[i], first.tokens[i], strict=True))
        lines.append(f"{batch_size:5}  {str(dtype)[6:]:8}  {name:22}  {run.device():7.4f}  {run.host():7.4f}"
                     f"  {1e3 * batch_size / run.host():8,.0f}  {alike} of {batch_size * NEW}")
    return lines


def make_engine(model: Any, batch_size: int) -> Engine:
    forward.DeviceForward.__init__.__kwdefaults__["sizes"] = (128, 8192 if batch_size > 16 else 2048)
    batch = decode.DecodeStep
    made: list[int] = []

    class Only(batch):  # only the batch sizes that are measured are captured
        def capture(self, stream: torch.cuda.Stream) -> None:
            made.append(self.batch_size)

    from thoughtbubbles.engine.cuda import decode_batch
    with patched(decode_batch, DecodeStep=Only), patched(persistent, MOST_ROWS=0):
        config = model.config
        per_token = 2 * config.n_layer * config.n_embd * model.transformer.wte.weight.element_size() * 2
        return Engine(model, numbered_tokens(config.vocab_size), EngineConfig(
            max_batch_size=batch_size, cache_bytes=int(1.3 * batch_size * config.block_size * per_token),
            prefix_caching=False, max_prefill_tokens=8192))


def install(engine: Engine, batch_size: int, settings: dict[str, Any], dtype: torch.dtype) -> None:
    executor = engine.executor.paged
    batch, old = executor.decode, next(iter(executor.decode._steps.values()))
    assert not engine.has_work
    few = (lambda *_: settings["MOST_ROWS"] > 0) if dtype == torch.float32 else persistent.few_enough
    with patched(persistent, **settings), patched(decode, few_enough=few):
        step = decode.DecodeStep(old._model, old._cache, batch.lanes, executor.sampler, batch_size=batch_size)
        step.capture(torch.cuda.Stream())
    import numpy as np
    batch._steps[batch_size] = step
    batch._counted[step] = np.zeros((len(old._cache.segments), 2), np.int64)
    batch._batch = []


def profiled(engine: Engine, batch_size: int, prompts: list[list[int]]) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        decoded(engine, batch_size, prompts)
    times = sorted(((e.self_device_time_total / NEW, e.count / NEW, e.key) for e in seen.key_averages()), reverse=True)
    return ", ".join(f"{key[:20].strip('_')} {n:.0f}x {each:.1f}" for each, n, key in times[:11])


def decoded(engine: Engine, batch_size: int, prompts: list[list[int]]) -> Run:
    run, step = Run(), engine.executor.paged.decode._steps[batch_size]
    replay = step._replay

    def timed(*, plain: bool) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay(plain=plain)
        end.record()
        run.events.append((start, end))

    step._replay = timed
    for i, ids in enumerate(prompts):
        engine.add(str(i), ids, SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0))
    missing = set(map(str, range(batch_size)))
    while engine.has_work:
        decoding, start = not missing, time.perf_counter()
        for event in engine.step():
            missing.discard(event.request_id)
            if event.token_id is not None:
                run.tokens.setdefault(event.request_id, []).append(event.token_id)
        if decoding:
            run.steps.append(time.perf_counter() - start)
    step._replay = replay
    return run


@contextmanager
def patched(module: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


if __name__ == "__main__":
    main()
