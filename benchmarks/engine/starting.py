"""How long an engine on a GPU takes to be ready: with no kernel compiled before, and with all.

    python -m benchmarks.engine.starting [--ways together "one by one"]

Each engine starts in a process of its own, over random weights of the 124M shape: `together` as engines do, `one by
one` with each kernel compiled by its first launch. Seconds are from the model to an engine that is ready.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import torch

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model
from thoughtbubbles.engine import Engine, EngineConfig

WAYS = ("together", "one by one")


def main() -> None:
    """Print a table, or the seconds of one start."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--start", choices=WAYS, help="start one engine with the cache of compiled kernels that there is"
    )
    args = parser.parse_args()
    if args.start:
        print(f"{_start(args.start):.1f}")
        return
    print(header(), flush=True)
    print(f"{os.cpu_count()} processors\nkernels are compiled  seconds  compiled before")
    for way in args.ways:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (_seconds(way, cache) for _ in range(2))
        print(f"{way:20}  {cold:>7}  {warm:>15}", flush=True)


def _seconds(way: str, cache: str) -> str:
    command = [sys.executable, "-m", "benchmarks.engine.starting", "--start", way]
    environment = {**os.environ, "TRITON_CACHE_DIR": cache}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()  # noqa: S603 (our own command)


def _start(way: str) -> float:
    if way == "one by one":
        from thoughtbubbles.engine.cuda import compiling  # noqa: PLC0415 - needs Triton

        compiling.compile_launched = lambda *_: None
    model = random_model(1024, "cuda", torch.bfloat16)
    start = time.perf_counter()
    Engine(model, numbered_tokens(model.config.vocab_size), EngineConfig(max_batch_size=64, cache_bytes=4 << 30))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
