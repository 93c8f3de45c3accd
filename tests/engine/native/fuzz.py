"""Random plans on the native executor and on the portable one, for as long as wished: `make native-fuzz`.

    python -m tests.engine.native.fuzz [--seconds 600] [--seed 0]

By turns draws with any sampling fields; a mix of forward passes, compared number by number; and an engine under load
with aborts, preemptions, shared prefixes and prompts in chunks, of which the greedy tokens are compared. Shapes, page
sizes, threads and instruction levels are random. Ends with 1 if the two differ, but for scores on the edge of the grid
(docs/SPEC.md): the last bit of these decides which fork survives.
"""

import argparse
import os
import random
import sys
import time

import torch

from tests.engine.conftest import lively_model
from tests.engine.native.conftest import MakeForward
from tests.engine.native.test_native_engine import serve
from tests.engine.native.test_native_forward import MORE_SHAPES, STEPS, Mix
from tests.engine.native.test_native_sampler import Both, draw_some
from tests.engine.test_oracle import SHAPES
from thoughtbubbles.engine.native.forward import NativeForward
from thoughtbubbles.engine.native.loading import LEVEL_VARIABLE, Native, find_native, load_native
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, set_threads

ODD = {"heads of 40": {"n_embd": 40, "n_head": 1}, "heads of 6": {"n_embd": 42, "n_head": 7, "vocab_size": 259}}
EDGES = 0.05
"""As `test_random_mixes` has it."""


def main() -> int:
    """Return 0 where nothing differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the first plan; each next one has one more")
    args = parser.parse_args()
    levels, shapes = load_native().library.levels(), {**SHAPES, **MORE_SHAPES, **ODD}
    end, seed = time.monotonic() + args.seconds, args.seed
    compared = edges = requests = others = preempted = drawn = 0
    while time.monotonic() < end:
        dice = random.Random(seed)
        shape, level, threads = dice.choice(list(shapes)), dice.choice(levels), dice.randint(1, 3)
        page_size = dice.choice([1, 2, 4, 16])
        print(f"seed {seed}: {shape}, {level}, {threads} threads, pages of {page_size}", flush=True)
        set_threads(threads)
        model = lively_model(**shapes[shape])
        if dice.random() < 0.5:
            model = model.bfloat16().float()
        if seed % 3 == 0:
            drawn += run_draws(level, seed, dice)
        elif seed % 3 == 1:
            mix = run_mix(model, level, seed, page_size)
            compared, edges = compared + mix.compared, edges + mix.edges
        else:
            number, differing, preemptions = run_load(model, level, seed, page_size, dice)
            requests, others, preempted = requests + number, others + differing, preempted + preemptions
        seed += 1
    print(f"{seed - args.seed} plans: {compared} chunks alike but for {edges} on an edge; {requests} requests with"
          f" {preempted} preemptions, the tokens of {others} differ; {drawn} draws alike")  # fmt: skip
    return int(edges > EDGES * compared + 1 or others > EDGES * requests + 1)


def run_mix(model: Thoughtbubbles, level: str, seed: int, page_size: int) -> Mix:
    """Raise `AssertionError` if a number differs."""
    mix = Mix(model, maker(level), seed, page_size)
    for _ in range(STEPS):
        mix.step()
    mix.compare_tallies()
    return mix


def run_draws(level: str, seed: int, dice: random.Random) -> int:
    """Return how many tokens were drawn. Raise `AssertionError` if one is another than the host's."""
    torch.manual_seed(seed)
    vocabulary = dice.choice([23, 257, 1500, 8192])
    padded = vocabulary + dice.choice([0, 5, 47])
    both = Both(lively_model, maker(level), vocabulary, padded)
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
    for _ in range(30):
        draw_some(both, dice, tokenizer, vocabulary, padded)
    return both.drawn


def maker(level: str) -> MakeForward:
    library = load_native().library
    return lambda model, cache: NativeForward(model, cache, ForkTally(), native=Native(library, level))


def run_load(model: Thoughtbubbles, level: str, seed: int, page_size: int, dice: random.Random) -> tuple[int, int, int]:
    """Return how many requests there were, of how many the tokens differ, and the preemptions."""
    os.environ[LEVEL_VARIABLE] = level
    find_native.cache_clear()
    settings = {"page_size": page_size, "max_batch_size": dice.choice([1, 3, 6, 24]),
                "max_prefill_tokens": dice.choice([1, 7, 16, 64]), "prefix_caching": dice.random() < 0.8,
                "cache_dtype": dice.choice(["float32", "float32", "float16"])}  # fmt: skip
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
    given, preemptions = serve(model, tokenizer, "native", seed, **settings)
    wanted, _ = serve(model, tokenizer, "portable", seed, **settings)
    assert {name: len(ids) for name, ids in given.items()} == {name: len(ids) for name, ids in wanted.items()}
    return len(given), sum(given[name] != wanted[name] for name in wanted), preemptions


if __name__ == "__main__":
    sys.exit(main())
