"""Decode of the engine against recomputing the whole sequence for every token, as published code does.

    python -m benchmarks.engine.decode [CHECKPOINT] [--batch-sizes 1 8] [--contexts 32 480] [--peers]

For each batch size and context (tokens already there) it prints the median inter-token time of either, in milliseconds,
and the ratios that matter: how much faster the cache is, and how the time grows. The engine's is over repeated runs.

--peers first sets it beside transformers' `generate` with a regular GPT-2 of the checkpoint's shape and random weights,
which computes one stream a token: tokens/s with the prompt, the two by turns, in either precision.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmarks.header import header
from benchmarks.shapes import random_prompts, regular_peer
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import Thoughtbubbles, load_checkpoint, shipped_checkpoint

WINDOW = 16
"""Tokens on either side of a context that its median is taken over."""
RECOMPUTED = 5
"""Whole-sequence forwards that a median is taken over."""
PROMPT, NEW = 16, 128
"""Tokens of each prompt and after it, beside a peer."""


def main() -> None:
    """Print the table."""
    args = _arguments()
    set_threads(args.threads)
    print(header())
    if args.peers:
        _print_peers(args)
    engine = _engine(args, torch.float32)
    print("batch  context  engine ms  recompute ms  cache is faster  engine tokens/s  against first context")
    for batch_size in args.batch_sizes:
        runs = [_decode(engine, batch_size, max(args.contexts) + WINDOW) for _ in range(args.runs)]
        medians = [statistics.median(t for times in runs for t in times[at - WINDOW : at + WINDOW])
                   for at in args.contexts]  # fmt: skip
        for context, cached in zip(args.contexts, medians, strict=True):
            recomputed = _recompute(engine.model, batch_size, context)
            print(f"{batch_size:5}  {context:7}  {cached:9.2f}  {recomputed:12.2f}  {recomputed / cached:14.1f}x"
                  f"  {1000 * batch_size / cached:15.0f}  {cached / medians[0]:20.2f}x", flush=True)  # fmt: skip


def _engine(args: argparse.Namespace, dtype: torch.dtype) -> Engine:
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint(), device=args.device, dtype=dtype)
    return Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(max_batch_size=max(args.batch_sizes)))


def _print_peers(args: argparse.Namespace) -> None:
    try:
        print(f"transformers {version('transformers')}: prompts of {PROMPT} tokens, {NEW} new ones, greedy; tokens/s")
    except ModuleNotFoundError:
        print("transformers is not installed: nothing is set beside the engine")
        return
    print("precision  batch  engine  transformers  engine over it")
    for dtype in (torch.float32, torch.bfloat16):
        engine = _engine(args, dtype)
        peer = regular_peer(engine.model.config, args.device, dtype)
        for batch_size in args.batch_sizes:
            prompts = random_prompts(engine.model.config, batch_size, PROMPT)
            ids = torch.tensor(prompts, device=args.device)
            ways = partial(_complete, engine, prompts), partial(_generate, peer, ids)
            runs = [[_seconds(way) for way in ways] for _ in range(args.runs + 1)][1:]
            ours, theirs = (batch_size * NEW / statistics.median(times) for times in zip(*runs, strict=True))
            name = str(dtype).removeprefix("torch.")
            print(f"{name:>9}  {batch_size:5}  {ours:6.0f}  {theirs:12.0f}  {ours / theirs:14.2f}", flush=True)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _complete(engine: Engine, prompts: list[list[int]]) -> None:
    engine.generate(prompts, SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0))


@torch.inference_mode()
def _generate(peer: Any, ids: Tensor) -> None:  # noqa: ANN401 - transformers' own
    peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                  do_sample=False, pad_token_id=0)  # fmt: skip


def _decode(engine: Engine, batch_size: int, length: int) -> list[float]:
    """Milliseconds of each step that a batch takes from one token to `length`."""
    params = SamplingParams(max_tokens=length - 1, ignore_eos=True, top_p=0.95, seed=0)
    for i in range(batch_size):
        engine.add(str(i), [random.Random(i).randrange(engine.tokenizer.vocab_size)], params)
    times = []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        times.append(1000 * (time.perf_counter() - start))
    return times


@torch.inference_mode()
def _recompute(model: Thoughtbubbles, batch_size: int, length: int) -> float:
    """Milliseconds of one token for a batch when every stream of the sequence is computed again."""
    ids = torch.randint(model.config.vocab_size, (batch_size, length), device=model.transformer.wte.weight.device)
    times = []
    for _ in range(RECOMPUTED):
        start = time.perf_counter()
        model(ids)[:, -1].argmax(-1).tolist()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder (the one that ships)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 480])
    parser.add_argument("--runs", type=int, default=3, help="times that each batch decodes (%(default)s)")
    parser.add_argument("--peers", action="store_true", help="beside transformers, where it is installed")
    parser.add_argument("--threads", type=int, help="(one fewer than torch would)")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
