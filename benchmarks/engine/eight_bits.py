"""Decode on a GPU with a cache in float8, with weights in int8, with both and with neither.

    python -m benchmarks.engine.eight_bits [--loads 64x2000 1x500]

Random weights of the 124M shape, L = 2048, bf16. For each way it prints the median time of a decode step at each load
(requests x tokens, of which all but the last 48 are prompts), the time until the first token of a prompt of
2,000 tokens, the bytes of pages that the first load uses, and the tokens that 1 GiB of cache has space for at that
rate. The ways take turns, run by run.
"""

import argparse
import gc
import statistics
import time
from dataclasses import dataclass, field

import torch

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts
from thoughtbubbles.engine import CacheDtype, Engine, EngineConfig, SamplingParams, WeightKind
from thoughtbubbles.model import Thoughtbubbles

WAYS: dict[str, tuple[CacheDtype | None, WeightKind]] = {
    "bfloat16": (None, "exact"), "float8 cache": ("float8", "exact"), "int8 weights": (None, "int8"),
    "both": ("float8", "int8"),
}  # fmt: skip
STEPS = 48
"""Decode steps that a median is taken over."""
PROMPT = 2000
"""Tokens of the prompt whose prefill is timed."""
GIB = 1 << 30


@dataclass
class Way:
    """An engine, and what was measured of it."""

    engine: Engine
    steps: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of a step, a median for each run of a load."""
    prefills: list[float] = field(default_factory=list)
    token_bytes: float = 0.0
    """Bytes of pages for each token of the first load."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--loads", nargs="+", default=["64x2000", "64x500", "16x500", "1x500"], metavar="REQUESTSxTOKENS"
    )
    parser.add_argument("--runs", type=int, default=5, help="that medians are taken over (%(default)s)")
    args = parser.parse_args()
    print(header())
    model = random_model(2048, "cuda", torch.bfloat16)
    ways = {name: Way(_engine(model, *kinds)) for name, kinds in WAYS.items()}
    gc.freeze()  # as the server does: the collector does not scan what has been loaded
    for load in args.loads:
        for _ in range(args.runs + 1):
            for way in ways.values():
                _decode(way, load)
    for _ in range(args.runs + 1):
        for way in ways.values():
            way.prefills.append(_prefill(way.engine))
    print(f"{'way':12}  " + "  ".join(f"{load:>8} ms  against" for load in args.loads)
          + "  prefill ms  KB a token  tokens in 1 GiB")  # fmt: skip
    first = ways["bfloat16"]
    for name, way in ways.items():
        steps = [
            (statistics.median(way.steps[load][1:]), statistics.median(first.steps[load][1:])) for load in args.loads
        ]
        print(f"{name:12}  " + "  ".join(f"{1e3 * own:11.3f}  {its / own:7.2f}" for own, its in steps)
              + f"  {1e3 * statistics.median(way.prefills[1:]):10.2f}  {way.token_bytes / 1e3:10.2f}"
              f"  {GIB / way.token_bytes:15,.0f}", flush=True)  # fmt: skip


def _engine(model: Thoughtbubbles, cache_dtype: CacheDtype | None, weights: WeightKind) -> Engine:
    config = EngineConfig(
        max_batch_size=64, cache_bytes=12 * GIB, prefix_caching=False, max_prefill_tokens=2048,
        cache_dtype=cache_dtype, weights=weights,
    )  # fmt: skip
    return Engine(model, numbered_tokens(model.config.vocab_size), config)


def _decode(way: Way, load: str) -> None:
    """Prefill the load but for its last tokens, and time the steps that decode these."""
    requests, tokens = map(int, load.split("x"))
    torch.manual_seed(0)
    for i, ids in enumerate(random_prompts(way.engine.model.config, requests, tokens - STEPS)):
        way.engine.add(str(i), ids, SamplingParams(max_tokens=STEPS + 8, ignore_eos=True, temperature=0))
    waiting, steps = set(map(str, range(requests))), list[float]()
    while way.engine.has_work:
        alone, start = not waiting, time.perf_counter()
        waiting -= {event.request_id for event in way.engine.step()}
        steps += [time.perf_counter() - start] * alone
        if len(steps) == STEPS:
            way.token_bytes = way.token_bytes or way.engine.cache.use().bytes / (requests * tokens)
    way.steps.setdefault(load, []).append(statistics.median(steps[4:STEPS]))


def _prefill(engine: Engine) -> float:
    """Return the seconds until the first token of a prompt."""
    engine.add("", random_prompts(engine.model.config, 1, PROMPT)[0], SamplingParams(max_tokens=1, ignore_eos=True))
    torch.cuda.synchronize()
    start = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
