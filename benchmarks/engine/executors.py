"""Decode speed on a CPU, by turns: the native executor, also with int8 weights, the portable one, and a regular GPT-2.

transformers and CTranslate2 (in float32 and int8) compute the regular GPT-2, each if it is installed; CTranslate2's is
converted from transformers'.

    python -m benchmarks.engine.executors [--threads 1] [--batch-sizes 1 8 32] [--contexts 32 480] [--runs 5] [--busy]

Tokens/s count the prompts' time too. The growth of a step is of the native executor, with keys and values in float32
and in float16. Medians are taken over runs; one run before them is left out. With --busy seconds are those of the
process on its processor, which other work on the machine lengthens less than those of a clock; for one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.header import header
from benchmarks.shapes import ctranslate2_peers, random_prompts, regular_peer
from thoughtbubbles.engine import (
    CacheDtype,
    Engine,
    EngineConfig,
    ExecutorKind,
    SamplingParams,
    WeightKind,
    set_threads,
)
from thoughtbubbles.model import Checkpoint, load_checkpoint, shipped_checkpoint

PROMPT, NEW, WINDOW = 16, 128, 16
CLOCKS = {False: time.perf_counter, True: time.process_time}

Complete = Callable[[list[list[int]]], None]


def main() -> None:
    """Print both tables."""
    args = _arguments()
    set_threads(args.threads)
    print(header())
    checkpoint = load_checkpoint(shipped_checkpoint(), dtype=torch.float32)
    _print_speed(args, checkpoint)
    _print_growth(args, checkpoint)


def _print_speed(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    config = checkpoint.model.config
    kinds: list[ExecutorKind] = ["native", "portable"]
    engines = {kind: _engine(checkpoint, max(args.batch_sizes), kind) for kind in kinds}
    ways: dict[str, Complete] = {kind: partial(_complete, engine) for kind, engine in engines.items()}
    ways["native int8"] = partial(_complete, _engine(checkpoint, max(args.batch_sizes), "native", weights="int8"))
    peer = regular_peer(config, "cpu", torch.float32)
    if peer is not None:
        ways["transformers"] = partial(_generate, peer)
        ways |= {f"ctranslate2 {dtype}": partial(_translate, generator)
                 for dtype, generator in ctranslate2_peers(peer, args.threads).items()}  # fmt: skip
    print(f"{engines['native'].executor.name}, {torch.get_num_threads()} threads, float32; prompts of {PROMPT} tokens,"
          f" {NEW} new ones, greedy\nbatch  way                  tokens/s  native over it")  # fmt: skip
    for batch_size in args.batch_sizes:
        prompts = random_prompts(config, batch_size, PROMPT)
        runs = [[_seconds(partial(way, prompts), args.busy) for way in ways.values()] for _ in range(args.runs + 1)][1:]
        speeds = [batch_size * NEW / statistics.median(times) for times in zip(*runs, strict=True)]
        for name, speed in zip(ways, speeds, strict=True):
            print(f"{batch_size:5}  {name:19}  {speed:8,.0f}  {speeds[0] / speed:14.2f}", flush=True)


def _print_growth(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    print("\na step of the native executor as the context grows\ncache    batch  context  step ms  against the first")
    dtypes: list[CacheDtype] = ["float32", "float16"]
    for dtype in dtypes:
        engine = _engine(checkpoint, max(args.batch_sizes), "native", dtype)
        for batch_size in args.batch_sizes:
            runs = [_steps(engine, batch_size, max(args.contexts) + WINDOW, args.busy) for _ in range(args.runs + 1)][
                1:
            ]
            medians = [statistics.median(t for run in runs for t in run[at - WINDOW : at + WINDOW])
                       for at in args.contexts]  # fmt: skip
            for context, step in zip(args.contexts, medians, strict=True):
                print(
                    f"{dtype:7}  {batch_size:5}  {context:7}  {1e3 * step:7.2f}  {step / medians[0]:17.2f}", flush=True
                )


def _engine(
    checkpoint: Checkpoint,
    batch_size: int,
    kind: ExecutorKind,
    cache_dtype: CacheDtype = "float32",
    weights: WeightKind = "exact",
) -> Engine:
    config = EngineConfig(
        max_batch_size=batch_size, executor=kind, cache_dtype=cache_dtype, weights=weights, prefix_caching=False,
        cache_bytes=2 << 30,
    )  # fmt: skip
    return Engine(checkpoint.model, checkpoint.tokenizer, config)


def _complete(engine: Engine, prompts: list[list[int]]) -> None:
    engine.generate(prompts, SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0))


@torch.inference_mode()
def _generate(peer: Any, prompts: list[list[int]]) -> None:  # noqa: ANN401 - transformers' own
    ids = torch.tensor(prompts)
    peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                  do_sample=False, pad_token_id=0)  # fmt: skip


def _translate(generator: Any, prompts: list[list[int]]) -> None:  # noqa: ANN401 - CTranslate2's own
    results = generator.generate_batch([list(map(str, prompt)) for prompt in prompts], max_length=NEW, min_length=NEW,
                                       include_prompt_in_result=False)  # fmt: skip
    assert all(len(result.sequences_ids[0]) == NEW for result in results)


def _seconds(work: Callable[[], object], busy: bool) -> float:
    clock = CLOCKS[busy]
    start = clock()
    work()
    return clock() - start


def _steps(engine: Engine, batch_size: int, length: int, busy: bool) -> list[float]:
    """Return the seconds of each step that a batch takes from one token to `length`."""
    for i, prompt in enumerate(random_prompts(engine.model.config, batch_size, 1)):
        engine.add(str(i), prompt, SamplingParams(max_tokens=length - 1, ignore_eos=True, temperature=0))
    times = []
    while engine.has_work:
        times.append(_seconds(engine.step, busy))
    return times


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 480], help="in tokens, of growth; at least 16")
    parser.add_argument("--runs", type=int, default=5, help="that medians are taken over (%(default)s)")
    parser.add_argument("--busy", action="store_true", help="take processor time, since the machine has other work")
    args = parser.parse_args()
    if args.busy and args.threads != 1:
        parser.error("--busy takes one thread")
    return args


if __name__ == "__main__":
    main()
