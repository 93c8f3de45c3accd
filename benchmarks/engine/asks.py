"""What requests ask for and what it costs on a CPU: a decode step by sampling fields, log-probabilities, stop strings.

    python -m benchmarks.engine.asks [--executor native] [--threads 1] [--batch-sizes 8 32] [--busy] [--alone]

All requests of a batch ask for the same, but for `a mix`, in which each asks for something else. The ways take turns,
so that what else the machine does falls on all of them. Medians are taken over runs; one run before them is left out.
With --busy times are those of the process on its processor, which other work lengthens less than those of a clock.
With --alone the draws of each step are repeated, and they alone are timed. With --memory nothing is timed: resident
memory is printed as requests come, on Linux.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.header import header
from benchmarks.server.serving import resident_mib
from benchmarks.shapes import random_prompts
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import load_checkpoint, shipped_checkpoint

PROMPT = 16
ALONE, REPEATED = 20, 10
Prompts = list[list[int]]
Ways = dict[str, list[dict[str, Any]]]
Clock = Callable[[], float]
ASKS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 40": {"top_k": 40},
    "min_p 0.05": {"min_p": 0.05},
    "top_k 40, top_p 0.9, temperature 0.8": {"top_k": 40, "top_p": 0.9, "temperature": 0.8},
    "repetition_penalty 1.1": {"repetition_penalty": 1.1},
    "presence and frequency penalty": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "logit_bias of 100 tokens": {"logit_bias": {7 * i: 0.5 for i in range(100)}},
    "min_tokens": {"min_tokens": 1000},
    "greedy, logprobs 0": {"temperature": 0, "logprobs": 0},
    "greedy, logprobs 5": {"temperature": 0, "logprobs": 5},
    "greedy, logprobs 20": {"temperature": 0, "logprobs": 20},
    "greedy, four stop strings": {"temperature": 0, "stop": ("\n\n\n\n", "</answer>", "###", "User:")},
}


def main() -> None:
    """Print a table."""
    args = _arguments()
    set_threads(args.threads)
    print(header())
    checkpoint = load_checkpoint(shipped_checkpoint(), dtype=torch.float32)
    before = resident_mib(os.getpid())
    config = EngineConfig(max_batch_size=max(args.batch_sizes), executor=args.executor, prefix_caching=False)
    engine = Engine(checkpoint.model, checkpoint.tokenizer, config)
    if args.memory:
        print(f"resident memory: {before:.0f} MiB before the engine, {resident_mib(os.getpid()):.0f} with it")
        for batch_size in args.batch_sizes:
            _decode(engine, random_prompts(checkpoint.model.config, batch_size, PROMPT), [{}] * batch_size, args.new)
            print(
                f"{resident_mib(os.getpid()):.0f} MiB after {batch_size} requests of {PROMPT + args.new} tokens",
                flush=True,
            )
        return
    clock = time.process_time if args.busy else time.perf_counter
    kinds = ["processor" if args.busy else "clock", f"{args.threads} threads"]
    print(f"{engine.executor.name}, {', '.join(kinds)}; prompts of {PROMPT} tokens, {args.new} new ones")
    for batch_size in args.batch_sizes:
        ways: Ways = {name: [settings] * batch_size for name, settings in ASKS.items()}
        others = list(ASKS.values())
        ways["a mix"] = [others[i % len(others)] for i in range(batch_size)]
        prompts = random_prompts(checkpoint.model.config, batch_size, PROMPT)
        if args.alone:
            _print_alone(engine, prompts, ways, clock)
        else:
            _print_steps(engine, prompts, ways, args, clock)


def _print_steps(engine: Engine, prompts: Prompts, ways: Ways, args: argparse.Namespace, clock: Clock) -> None:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.runs + 1):
        for name, settings in ways.items():
            start = clock()
            steps = _decode(engine, prompts, settings, args.new)
            times[name].append((clock() - start) / steps * 1e3)
    base = statistics.median(times["greedy"][1:])
    print(f"\n{len(prompts)} requests: ms a step, and beyond greedy; tokens/s")
    for name, own in times.items():
        step = statistics.median(own[1:])
        print(f"{step:8.2f}  {step - base:+7.2f}  {len(prompts) / step * 1e3:7.0f}  {name}", flush=True)


def _print_alone(engine: Engine, prompts: Prompts, ways: Ways, clock: Clock) -> None:
    print(f"\n{len(prompts)} requests: microseconds a row of a draw, the median of those of {ALONE} steps")
    executor: Any = engine.executor
    paged = getattr(executor, "paged", executor)
    draw, times = paged.draw, list[float]()

    def repeat(*arguments: object) -> object:
        start = clock()
        for _ in range(REPEATED):
            draw(*arguments)  # changes nothing
        times.append((clock() - start) / REPEATED / len(prompts) * 1e6)
        return draw(*arguments)

    paged.draw = repeat
    for name, settings in ways.items():
        times.clear()
        _decode(engine, prompts, settings, ALONE)
        print(f"{statistics.median(times):9.1f}  {name}", flush=True)
    paged.draw = draw


def _decode(engine: Engine, prompts: Prompts, settings: list[dict[str, Any]], new: int) -> int:
    """Return how many steps the requests took, the prompts' among them."""
    for i, (ids, each) in enumerate(zip(prompts, settings, strict=True)):
        engine.add(str(i), ids, SamplingParams(**{"max_tokens": new, "ignore_eos": True, "seed": i, **each}))
    steps = 0
    while engine.has_work:
        engine.step()
        steps += 1
    return steps


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--executor", choices=["native", "portable"], default="native")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--runs", type=int, default=3, help="that medians are taken over (%(default)s)")
    parser.add_argument("--new", type=int, default=48, help="tokens of each request (%(default)s)")
    parser.add_argument("--busy", action="store_true", help="take processor time, since the machine has other work")
    parser.add_argument("--memory", action="store_true", help="print resident memory")
    parser.add_argument("--alone", action="store_true", help="time draws, without the rest of a step")
    return parser.parse_args()


if __name__ == "__main__":
    main()
