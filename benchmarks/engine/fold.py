"""Tries of LayerNorm within products, in one engine by turns: `python -m benchmarks.engine.fold [batch sizes]`."""

import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
import triton

from benchmarks.engine import fold_before
from benchmarks.shapes import numbered_tokens, random_model
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cuda import layers
from thoughtbubbles.engine.cuda.decode import DecodeStep
from thoughtbubbles.engine.cuda.executor import make_device_sampler
from thoughtbubbles.engine.cuda.kernels import linear, tiles
from thoughtbubbles.engine.cuda.kernels.tiles import Tiles
from thoughtbubbles.engine.cuda.lanes import Lanes
from thoughtbubbles.engine.sampler import Sampler

NEW, PROMPT, RUNS = 128, 128, 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
START = time.perf_counter()


def say(*words):
    print(*words, flush=True)


def by_rows(least):
    return lambda m: max(least, min(8, triton.next_power_of_2(m)))


def table(*changed):
    """The tiles for few rows, of which some are changed: (0 the MLP's second, 1 attention's output, 2 wide), tiles."""
    made = list(tiles._FEW)
    for at, other in changed:
        made[at] = other
    return tuple(made)


def of_16():
    return tuple(replace(each, rows=16, warps=max(each.warps, warps), splits=max(each.splits, warps)) for each, warps in zip(tiles._FEW, (8, 4, 8), strict=True))


VARIANTS = {
    "present": None,
    "early": {"most": 0},
    "few 8": {"rows": lambda m: 8},
    "few 1-8": {"rows": by_rows(1)},
    "few 2-8": {},
    "few 2 or 8": {"rows": lambda m: 2 if m <= 2 else 8},
    "mlp 16 warps": {"table": lambda: table((0, Tiles(8, 8, 1024, 16, 1, splits=16)))},
    "attn 8 warps": {"table": lambda: table((1, Tiles(8, 8, 256, 8, 1, splits=8)))},
    "mlp 4 warps": {"table": lambda: table((0, Tiles(8, 8, 512, 4, 1, splits=4)))},
    "wide 32": {"table": lambda: table((2, Tiles(8, 32, 256, 4, 1, splits=4)))},
    "16 by 8": {"most": 16},
    "16 by 16": {"most": 16, "table": of_16},
}
OF_BATCH = {1: ["present", "early", "few 8", "few 1-8", "few 2-8", "few 2 or 8", "mlp 16 warps", "attn 8 warps", "mlp 4 warps", "wide 32"],
            2: ["present", "few 8", "few 2-8"], 4: ["present", "few 8", "few 2-8"],
            8: ["present", "early", "16 by 8", "16 by 16"], 16: ["present", "early", "16 by 16"], 64: ["present", "early"]}


@contextmanager
def variant(name):
    made = VARIANTS[name]
    with ExitStack() as stack:
        if made is None:
            for each in ("gelu_linear", "project_heads", "residual_linear", "normalise"):
                stack.enter_context(patch.object(layers, each, dropping(getattr(fold_before, each))))
            stack.enter_context(patch.object(layers, "few", lambda *_: False))
            yield
            return
        stack.enter_context(patch.object(tiles, "FEW_ROWS", made.get("most", tiles.FEW_ROWS)))
        if "table" in made:
            stack.enter_context(patch.object(tiles, "_FEW", made["table"]()))
        if "rows" in made:
            plain = tiles.few_tiles
            stack.enter_context(patch.object(linear, "few_tiles", lambda x, outputs: replace(plain(x, outputs), rows=made["rows"](len(x)))))
        yield


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
        with variant(name):
            step = DecodeStep(self.model, self.cache, self.lanes, self.sampler, batch_size=self.batch)
            step.plain = (True,)
            if capture:
                step.capture(torch.cuda.Stream())
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
    batches = [int(a) for a in sys.argv[1:] if a.isdigit()] or [*OF_BATCH]
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
        if batch in (1, 8):
            profile(bench, steps, ["early", "few 8", "few 2-8", "16 by 16"])
    say(f"# done after {time.perf_counter() - START:.0f} s")


if __name__ == "__main__":
    main()
