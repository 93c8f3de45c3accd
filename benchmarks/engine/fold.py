"""Tries of LayerNorm within products, in one engine by turns: `python -m benchmarks.engine.fold [batch sizes]`."""

import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import torch
import triton

from benchmarks.engine import fold_before
from benchmarks.shapes import numbered_tokens, random_model
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cuda import layers
from thoughtbubbles.engine.cuda.decode import DecodeStep
from thoughtbubbles.engine.cuda.executor import make_device_sampler
from thoughtbubbles.engine.cuda.kernels.tiles import Tiles
from thoughtbubbles.engine.cuda.lanes import Lanes
from thoughtbubbles.engine.cuda.layers import Plan
from thoughtbubbles.engine.sampler import Sampler

NEW, PROMPT, RUNS = 128, 128, 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
START = time.perf_counter()


def say(*words):
    print(*words, flush=True)


def few(m):
    return max(2, min(8, triton.next_power_of_2(m)))


def tiles(columns, depth, warps, still=True):
    return lambda m: Tiles(few(m), columns, depth, warps, 2 if still else 3)


def wide8(m):
    return Tiles(16 if m <= 16 else 32, 32, 256, 8, 2)


NARROW = {"attended": tiles(8, 256, 4), "mlp": tiles(8, 1024, 8)}
LN4 = {"heads": tiles(32, 256, 4), "gelu": tiles(32, 256, 4)}
VARIANTS = {
    "present": None,
    "early": {},
    "narrow": NARROW,
    "narrow+LN": {**LN4, **NARROW},
    "n+LN, moved": {"heads": tiles(32, 256, 4, False), "gelu": tiles(32, 256, 4, False),
                    "attended": tiles(8, 256, 4, False), "mlp": tiles(8, 1024, 8, False)},
    "n+LN, 16,16": {"heads": tiles(16, 256, 4), "gelu": tiles(16, 256, 4), **NARROW},
    "n+LN, 8 warps": {"heads": tiles(32, 256, 8), "gelu": tiles(32, 256, 8), **NARROW},
    "parts+LN": {**LN4, "spare": True},
    "atomic+LN": {"heads": wide8, "gelu": wide8, "counts": True},
}
OF_BATCH = {1: ["present", "early", "narrow", "narrow+LN", "n+LN, moved", "n+LN, 16,16", "n+LN, 8 warps", "parts+LN"],
            4: ["present", "narrow+LN"], 16: ["present", "early", "atomic+LN"], 64: ["present", "early"]}


class Plans(dict):
    """The plan for each number of usual rows: a step's rows are few if it has few requests."""

    def __init__(self, makers, model, batch):
        self.makers = makers
        most = batch << len(model.config.fork_layers)
        self.counts = torch.zeros(4096, dtype=torch.int32, device=DEVICE) if makers.get("counts") else None
        self.spare = torch.zeros((most, model.config.n_embd), device=DEVICE, dtype=model.transformer.wte.weight.dtype) if makers.get("spare") else None

    def get(self, usual, default):
        made = {name: make(usual) for name, make in self.makers.items() if callable(make)}
        return Plan(**made, counts=self.counts, spare=self.spare)


class Bench:
    def __init__(self, batch, dtype=torch.bfloat16):
        self.model = random_model(512, DEVICE, dtype)
        self.batch = batch
        tokens = numbered_tokens(self.model.config.vocab_size)
        weight = self.model.transformer.wte.weight
        self.cache = ForkCache(self.model.config, max_tokens=512, total_bytes=batch << 27, page_size=16, like=weight,
                               requests=batch, retain=False)
        self.sampler = make_device_sampler(self.model, self.cache, Sampler(tokens))
        ledger = self.cache.ledger
        lanes, columns = ledger.table.shape
        self.lanes = Lanes.zeros(weight.device, L=lanes, G=len(self.cache.segments), P=columns)
        begin = [*ledger.begin.tolist(), columns]
        for i, pages in enumerate(self.cache.segments):
            wide = begin[i + 1] - begin[i]
            assert lanes * wide * pages.page_size <= pages.keys[0].shape[1], (lanes, wide, pages.keys[0].shape)
            numbers = torch.arange(lanes * wide, device=weight.device, dtype=torch.int32)
            self.lanes.table[:, begin[i] : begin[i + 1]] = numbers.view(lanes, wide)

    def step(self, name, capture=True):
        makers = VARIANTS[name]
        with ExitStack() as stack:
            if makers is None:
                for each in ("gelu_linear", "project_heads", "residual_linear", "normalise"):
                    stack.enter_context(patch.object(layers, each, dropping(getattr(fold_before, each))))
            else:
                stack.enter_context(patch.object(layers, "PLANS", Plans(makers, self.model, self.batch)))
            step = DecodeStep(self.model, self.cache, self.lanes, self.sampler, batch_size=self.batch)
            step.plain = (True,)
            if capture:
                step.capture(torch.cuda.Stream())
                step.kept = layers.PLANS
            else:
                step.prepare()
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
        return step

    def decoded(self, step, timed=True):
        """Return the median time of a step after the first PROMPT, and the tokens."""
        lanes, batch = self.lanes, self.batch
        step.lane.copy_(torch.arange(batch, dtype=torch.int32))
        lanes.tokens.zero_()
        lanes.streams.zero_()
        lanes.kappa.fill_(self.model.config.max_block_size)
        self.sampler.state.token.copy_((torch.arange(len(self.sampler.state.token)) * 7919 + 11) % 50000)
        events, outputs = [], []
        for _ in range(PROMPT + NEW):
            if DEVICE == "cuda":
                pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                pair[0].record()
                step.run(plain=True)
                pair[1].record()
                events.append(pair)
            else:
                step.run(plain=True)
            outputs.append(step.output.clone())
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        read = [step.read(each.cpu())[1] for each in outputs]
        self.mean = [float(np.mean([r[1 + i].sum() for r in read[-1:]])) / (PROMPT + NEW) for i in range(len(self.cache.segments))]
        tokens = np.array([r[0] for r in read])
        return (statistics.median(a.elapsed_time(b) for a, b in events[PROMPT:]) if events else 0.0), tokens


def dropping(call):
    """Without what only the tries take."""
    def called(**given):
        for name in ("norm", "counts") if call.__name__ != "normalise" else ():
            given.pop(name, None)
        return call(**given)
    return called


def compare(batch, names):
    bench = Bench(batch)
    steps = {}
    for name in names:
        try:
            steps[name] = bench.step(name)
        except Exception as error:
            say(batch, name, type(error).__name__, str(error)[-300:])
    say(f"# {batch} captured after {time.perf_counter() - START:.0f} s")
    times, told = {name: [] for name in steps}, {}
    for run in range(RUNS + 1):
        for name, step in steps.items():
            took, told[name] = bench.decoded(step)
            if run:
                times[name].append(took)
    first = told["present"]
    say("# streams of a token in each segment", bench.mean, "different tokens", len(np.unique(first)))
    base = statistics.median(times["present"])
    for name in steps:
        alike = int((first == told[name]).sum())
        took = statistics.median(times[name])
        say(f"{batch:5}  {name:14}  {took:.4f} ms  {took / base:.3f}  {alike} of {first.size}  {min(times[name]):.4f}..{max(times[name]):.4f}")
    return bench, steps


def profile(bench, steps, names):
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record
    for name in names:
        if name not in steps:
            continue
        with record(activities=[ProfilerActivity.CUDA]) as seen:
            bench.decoded(steps[name])
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)[:9]
        say(f"# profile {bench.batch} {name}: " + ", ".join(f"{row.key[:24]} {row.count / (PROMPT + NEW):.0f}x {row.self_device_time_total / (PROMPT + NEW):.1f}" for row in rows))


def main():
    batches = [int(a) for a in sys.argv[1:] if a.isdigit()] or [1, 16, 64, 4]
    if "--compile" in sys.argv:
        name = sys.argv[-1]
        for batch in batches:
            Bench(batch).step(name, capture=False)
        print(f"{batches} {name} {time.perf_counter() - START:.0f} s")
        return
    jobs = [(n, v) for n in batches for v in OF_BATCH[n]]
    others = [subprocess.Popen([sys.executable, "-m", "benchmarks.engine.fold", str(n), "--compile", v], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for n, v in jobs]
    say(torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    for other in others:
        try:
            text = other.communicate(timeout=max(1, 42 - time.perf_counter() + START))[0]
            say("#", text.strip()[-300:])
        except subprocess.TimeoutExpired:
            other.kill()
            say("# killed", other.args[-3:])
    say(f"# compiled after {time.perf_counter() - START:.0f} s")
    made = [(*compare(batch, OF_BATCH[batch]), batch) for batch in batches]
    for bench, steps, batch in made:
        if batch in (1, 16):
            profile(bench, steps, OF_BATCH[batch])
    say(f"# done after {time.perf_counter() - START:.0f} s")


if __name__ == "__main__":
    main()
