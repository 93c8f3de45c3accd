"""Decode speed on a CPU, by turns: the native executor, the portable one, and transformers' regular GPT-2 if installed.

    python -m benchmarks.engine.executors [--threads 1] [--batch-sizes 1 8 32] [--contexts 32 480] [--runs 5]

Tokens/s count the prompts' time too. The growth of a step is of the native executor, with keys and values in float32
and in float16. Medians are taken over runs; one run before them is left out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.header import header
from benchmarks.shapes import random_prompts, regular_peer
from thoughtbubbles.engine import CacheDtype, Engine, EngineConfig, ExecutorKind, SamplingParams, set_threads
from thoughtbubbles.model import Checkpoint, load_checkpoint, shipped_checkpoint

PROMPT, NEW, WINDOW = 16, 128, 16


def main() -> None:
    """Print both tables."""
    args = _arguments()
    set_threads(args.threads)
    print(header())
    checkpoint = load_checkpoint(shipped_checkpoint(), dtype=torch.float32)
    _print_speed(args, checkpoint)
    _print_growth(args, checkpoint)


def _print_speed(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    kinds: list[ExecutorKind] = ["native", "portable"]
    engines = [_engine(checkpoint, max(args.batch_sizes), kind) for kind in kinds]
    peer = regular_peer(checkpoint.model.config, "cpu", torch.float32) if find_spec("transformers") else None
    print(f"{engines[0].executor.name}, {torch.get_num_threads()} threads, float32; prompts of {PROMPT} tokens and"
          f" {NEW} new ones, greedy; tokens/s")  # fmt: skip
    print("batch  native  portable  native over it  transformers  native over it")
    for batch_size in args.batch_sizes:
        prompts = random_prompts(checkpoint.model.config, batch_size, PROMPT)
        ways: list[Callable[[], object]] = [partial(_complete, engine, prompts) for engine in engines]
        if peer is not None:
            ways.append(partial(_generate, peer, torch.tensor(prompts)))
        runs = [[_seconds(way) for way in ways] for _ in range(args.runs + 1)][1:]
        speeds = [batch_size * NEW / statistics.median(times) for times in zip(*runs, strict=True)]
        native, portable, theirs = [*speeds, float("nan")][:3]
        print(f"{batch_size:5}  {native:6,.0f}  {portable:8,.0f}  {native / portable:14.2f}  {theirs:12,.0f}"
              f"  {native / theirs:14.2f}", flush=True)  # fmt: skip


def _print_growth(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    print("\na step of the native executor as the context grows\ncache    batch  context  step ms  against the first")
    dtypes: list[CacheDtype] = ["float32", "float16"]
    for dtype in dtypes:
        engine = _engine(checkpoint, max(args.batch_sizes), "native", dtype)
        for batch_size in args.batch_sizes:
            runs = [_steps(engine, batch_size, max(args.contexts) + WINDOW) for _ in range(args.runs + 1)][1:]
            medians = [statistics.median(t for run in runs for t in run[at - WINDOW : at + WINDOW])
                       for at in args.contexts]  # fmt: skip
            for context, step in zip(args.contexts, medians, strict=True):
                print(
                    f"{dtype:7}  {batch_size:5}  {context:7}  {1e3 * step:7.2f}  {step / medians[0]:17.2f}", flush=True
                )


def _engine(checkpoint: Checkpoint, batch_size: int, kind: ExecutorKind, cache_dtype: CacheDtype = "float32") -> Engine:
    config = EngineConfig(
        max_batch_size=batch_size, executor=kind, cache_dtype=cache_dtype, prefix_caching=False, cache_bytes=2 << 30
    )
    return Engine(checkpoint.model, checkpoint.tokenizer, config)


def _complete(engine: Engine, prompts: list[list[int]]) -> None:
    engine.generate(prompts, SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0))


@torch.inference_mode()
def _generate(peer: Any, ids: Tensor) -> None:  # noqa: ANN401 - transformers' own
    peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                  do_sample=False, pad_token_id=0)  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _steps(engine: Engine, batch_size: int, length: int) -> list[float]:
    """Return the seconds of each step that a batch takes from one token to `length`."""
    for i, prompt in enumerate(random_prompts(engine.model.config, batch_size, 1)):
        engine.add(str(i), prompt, SamplingParams(max_tokens=length - 1, ignore_eos=True, temperature=0))
    times = []
    while engine.has_work:
        times.append(_seconds(engine.step))
    return times


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 480], help="in tokens, of growth; at least 16")
    parser.add_argument("--runs", type=int, default=5, help="that medians are taken over (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
