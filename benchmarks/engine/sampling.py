"""What sampling costs on a GPU: the draw alone, and requests that decode together, by what they ask for.

    python -m benchmarks.engine.sampling [--parts draw profile requests] [--batch-sizes 16 64 256]

- `draw`: microseconds of a draw in a CUDA graph from random bfloat16 logits, V = 50,304, by what all requests, or one
  of them, ask for.
- `profile`: the same without a graph, by kernel.
- `requests`: decode tokens/s of 16 requests at the 124M shape, 128 + 128 tokens, and the share of the plain ones'. The
  mixes take turns.

Medians are taken over runs; one run before them is left out.
"""

import argparse
import gc
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine.timing import device_seconds
from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts, shape_124m
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.cuda.sampler import DeviceSampler
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.request import Request
from thoughtbubbles.model import Selection

VOCABULARY, NEW = 50_304, 128
PLAIN: dict[str, Any] = {"temperature": 1.0}
MIXES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all plain": (PLAIN, PLAIN),
    "one top_p 0.9": ({"top_p": 0.9}, PLAIN),
    "all top_p 0.9": ({"top_p": 0.9}, {"top_p": 0.9}),
    "all top_k 50": ({"top_k": 50}, {"top_k": 50}),
    "all top_k 50, top_p 0.9": ({"top_k": 50, "top_p": 0.9}, {"top_k": 50, "top_p": 0.9}),
    "one logprobs 5": ({"logprobs": 5}, PLAIN),
    "all logprobs 20": ({"logprobs": 20}, {"logprobs": 20}),
    "all min_p 0.05": ({"min_p": 0.05}, {"min_p": 0.05}),
    "one repetition_penalty": ({"repetition_penalty": 1.1}, PLAIN),
    "all penalties and bias": ({"repetition_penalty": 1.1, "frequency_penalty": 0.1, "logit_bias": {5: 1}},) * 2,
}
"""By name: what the first request asks for, and what the others do."""


def main() -> None:
    """Print a table for each part."""
    args = _arguments()
    print(header())
    for part in args.parts:
        {"draw": _draw, "profile": _profile, "requests": _requests}[part](args)


@torch.inference_mode()
def _draw(args: argparse.Namespace) -> None:
    print(f"\nmicroseconds of a draw, V = {VOCABULARY}; median of {args.runs} runs of 50")
    print("".join(f"  {size:>7}" for size in args.batch_sizes))
    for name in MIXES:
        times = [_time_draw(*make_sampler(size, name), runs=args.runs) for size in args.batch_sizes]
        print("".join(f"  {time:7.1f}" for time in times), f"  {name}", flush=True)


def make_sampler(size: int, name: str, device: str = "cuda") -> tuple[DeviceSampler, dict[str, Any]]:
    """Return a sampler whose lanes draw for a mix, and the arguments of a draw for all of them."""
    first, others = MIXES[name]
    tokenizer, selection = numbered_tokens(VOCABULARY), Selection.of(shape_124m(512), "causal")
    params = [SamplingParams(**first), *[SamplingParams(**others)] * (size - 1)]
    requests = [Request(str(i), (1, 2, 3), one, selection, i, Detokenizer(tokenizer)) for i, one in enumerate(params)]
    sampler = DeviceSampler(np.ones(size, np.int64), batch_size=size, vocabulary=VOCABULARY,
                            model_vocabulary=VOCABULARY, end_of_text=0, device=torch.device(device))  # fmt: skip
    sampler.assign(np.arange(size), requests)
    lane = torch.arange(size, dtype=torch.int32, device=device)
    logits = (2 * torch.randn(size, VOCABULARY, device=device)).bfloat16()
    return sampler, {"logits": logits, "lane": lane, "token": torch.empty_like(lane), "plain": name == "all plain"}


def _time_draw(sampler: DeviceSampler, arguments: dict[str, Any], runs: int) -> float:
    sampler.draw(**arguments)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(50):
            sampler.draw(**arguments)
    times = [1e6 * device_seconds(graph.replay) / 50 for _ in range(runs + 1)]
    return statistics.median(times[1:])


@torch.inference_mode()
def _profile(args: argparse.Namespace) -> None:
    print("\nmicroseconds of each kernel of a draw")
    for size in args.batch_sizes:
        for name in ("all plain", "one top_p 0.9", "all top_p 0.9", "all top_k 50", "all logprobs 20"):
            sampler, arguments = make_sampler(size, name)
            sampler.draw(**arguments)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                for _ in range(20):
                    sampler.draw(**arguments)
                torch.cuda.synchronize()
            parts = [f"{each.key} {each.self_device_time_total / 20:.1f}" for each in seen.key_averages()]
            print(f"{size:4} {name}: {', '.join(parts)}", flush=True)


def _requests(args: argparse.Namespace) -> None:
    model = random_model(512, "cuda", torch.bfloat16)
    engine = Engine(model, numbered_tokens(VOCABULARY), EngineConfig(max_batch_size=16, prefix_caching=False))
    gc.freeze()  # as the server does: the collector does not scan what has been loaded
    prompts = random_prompts(model.config, 16, 128)
    runs: dict[str, list[float]] = {name: [] for name in MIXES}
    for _ in range(args.runs + 1):
        for name, (first, others) in MIXES.items():
            runs[name].append(decode(engine, prompts, [first, *[others] * 15]))
    plain = statistics.median(runs["all plain"][1:])
    print(f"\n16 requests, prompts of 128 tokens, {NEW} new ones; decode tokens/s; medians of {args.runs} runs")
    for name, rates in runs.items():
        rate = statistics.median(rates[1:])
        spread = f"{min(rates[1:]):,.0f} to {max(rates[1:]):,.0f}"
        print(f"{rate:9,.0f}  {rate / plain:5.2f} of plain  {spread:>18}  {name}", flush=True)


def decode(engine: Engine, prompts: list[list[int]], settings: list[dict[str, Any]]) -> float:
    """Return the tokens/s of all requests together, from every one's first token on."""
    for i, (ids, each) in enumerate(zip(prompts, settings, strict=True)):
        engine.add(str(i), ids, SamplingParams(max_tokens=NEW, ignore_eos=True, **each))
    events = 0
    while events < len(prompts):
        events += len(engine.step())
    left, begin = len(prompts) * NEW - events, time.perf_counter()
    while engine.has_work:
        engine.step()
    return left / (time.perf_counter() - begin)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=["draw", "profile", "requests"], default=["draw", "requests"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
