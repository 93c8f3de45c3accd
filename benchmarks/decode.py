"""Decode of the engine against recomputing the whole sequence for every token, as published code does.

    python -m benchmarks.decode [CHECKPOINT] [--batch-sizes 1 8] [--contexts 32 480]

For each batch size and context (tokens already there) it prints the median inter-token time of either, in milliseconds,
and the ratios that matter: how much faster the cache is, and how the time grows. The engine's is over repeated runs.
"""

import argparse
import random
import statistics
import time

import torch

from benchmarks.header import header
from engine import Engine, EngineConfig, SamplingParams, set_threads
from model import Thoughtbubbles, load_checkpoint, shipped_checkpoint

WINDOW = 16
"""Tokens on either side of a context that its median is taken over."""
RECOMPUTED = 5
"""Whole-sequence forwards that a median is taken over."""


def main() -> None:
    """Print the table."""
    args = _arguments()
    set_threads(args.threads)
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint(), device=args.device)
    engine = Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(max_batch_size=max(args.batch_sizes)))
    print(header())
    print("batch  context  engine ms  recompute ms  cache is faster  engine tokens/s  against first context")
    for batch_size in args.batch_sizes:
        runs = [_decode(engine, batch_size, max(args.contexts) + WINDOW) for _ in range(args.runs)]
        medians = [statistics.median(t for times in runs for t in times[at - WINDOW : at + WINDOW])
                   for at in args.contexts]  # fmt: skip
        for context, cached in zip(args.contexts, medians, strict=True):
            recomputed = _recompute(engine.model, batch_size, context)
            print(f"{batch_size:5}  {context:7}  {cached:9.2f}  {recomputed:12.2f}  {recomputed / cached:14.1f}x"
                  f"  {1000 * batch_size / cached:15.0f}  {cached / medians[0]:20.2f}x", flush=True)  # fmt: skip


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
    parser.add_argument("--threads", type=int, help="(one fewer than torch would)")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
