r"""What HTTP costs: tokens streamed to clients of a real server, against the engine without one, in one run.

    python -m benchmarks.http [--clients 1 8] [--max-tokens 256]
    python -m benchmarks.http --random-shape 124m --device cuda --dtype bfloat16 --clients 1 64 --processes 4 \
        --prompt-tokens 128 --max-tokens 128 --requests-per-client 4

Each client asks as often as told, one request after the other, and so is the engine alone: as many run at a time, the
next begins when one ends. For each number of clients it prints tokens/s of both and their share; the 50th and 99th
percentile of the time to the first token; the inter-token time of both, the median over requests, and their ratio; and
how many tokens a chunk had on average.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.header import header
from benchmarks.serving import serving
from benchmarks.shapes import random_model
from benchmarks.streaming import Load, Stream, put_load
from engine import Engine, EngineConfig, SamplingParams, set_threads
from model import Checkpoint, Tokenizer, load_checkpoint, save_checkpoint, shipped_checkpoint

COLUMNS = ("clients", "tokens/s", "engine alone", "share", "first token p50 ms", "p99 ms", "inter-token ms",
           "engine alone ms", "ratio", "tokens a chunk")  # fmt: skip


def main() -> None:
    """Print the table."""
    args = _arguments()
    with _checkpoint(args) as folder, ProcessPoolExecutor(args.processes, get_context("spawn")) as processes:
        set_threads()  # as the server does
        print(header())
        print("  ".join(COLUMNS))
        checkpoint = load_checkpoint(folder, device=args.device, dtype=getattr(torch, args.dtype))
        loads = [_load(args, clients, checkpoint.tokenizer.vocab_size - 1) for clients in args.clients]
        alone = _alone(args, checkpoint, loads)
        options = {"checkpoint": folder, "device": args.device, "dtype": args.dtype,
                   "max-batch-size": max(args.clients), "cache-bytes": args.cache_bytes}  # fmt: skip
        with serving(*(word for name, value in options.items() for word in (f"--{name}", str(value)))) as (address, _):
            for load, engine in zip(loads, alone, strict=True):
                _row(_warmed(replace(load, address=address), processes, args.processes), engine, load)


def _row(streams: list[Stream], engine: list[Stream], load: Load) -> None:
    first = sorted(1000 * stream.first for stream in streams)
    rate, engine_rate = _rate(streams), _rate(engine)
    gap, engine_gap = (1000 * statistics.median(each.inter_token for each in told) for told in (streams, engine))
    chunk = sum(each.tokens for each in streams) / sum(len(each.arrivals) for each in streams)
    cells = (str(load.clients), f"{rate:.0f}", f"{engine_rate:.0f}", f"{rate / engine_rate:.2f}",
             f"{statistics.median(first):.1f}", f"{first[int(0.99 * len(first))]:.1f}", f"{gap:.2f}",
             f"{engine_gap:.2f}", f"{gap / engine_gap:.2f}", f"{chunk:.2f}")  # fmt: skip
    print("  ".join(cell.rjust(len(name)) for cell, name in zip(cells, COLUMNS, strict=True)), flush=True)


def _rate(streams: list[Stream]) -> float:
    """Tokens a second of all together."""
    began, ended = min(each.asked for each in streams), max(each.arrivals[-1] for each in streams)
    return sum(each.tokens for each in streams) / (ended - began)


def _warmed(load: Load, processes: Executor, number: int) -> list[Stream]:
    """The load's streams, after one request of each client that counts for nothing."""
    put_load(replace(load, requests=1, seed=load.seed + 1), processes, number)
    return put_load(load, processes, number)


def _alone(args: argparse.Namespace, checkpoint: Checkpoint, loads: list[Load]) -> list[list[Stream]]:
    """The same of the engine without a server, which is gone afterwards."""
    config = EngineConfig(max_batch_size=max(args.clients), cache_bytes=args.cache_bytes)
    engine = Engine(checkpoint.model, checkpoint.tokenizer, config)
    told = []
    for load in loads:
        _generate(engine, replace(load, requests=1, seed=load.seed + 1))
        told.append(_generate(engine, load))
    return told


def _generate(engine: Engine, load: Load) -> list[Stream]:
    params = SamplingParams(max_tokens=load.max_tokens, ignore_eos=True)
    asked: dict[str, float] = {}
    arrivals: dict[str, list[float]] = {}

    def ask(client: int, request: int) -> None:
        name = f"{client}/{request}"
        asked[name], arrivals[name] = time.monotonic(), []
        engine.add(name, load.prompt(client, request), params)

    for client in range(load.clients):
        ask(client, 0)
    while engine.has_work:
        events = engine.step()
        now = time.monotonic()
        for event in events:
            arrivals[event.request_id].append(now)
            client, request = map(int, event.request_id.split("/"))
            if event.finish_reason is not None and request + 1 < load.requests:
                ask(client, request + 1)
    return [Stream(asked[name], arrivals[name], load.max_tokens) for name in asked]


def _load(args: argparse.Namespace, clients: int, vocabulary: int) -> Load:
    return Load(
        address="", clients=clients, requests=args.requests_per_client, prompt_tokens=args.prompt_tokens,
        vocabulary=vocabulary, max_tokens=args.max_tokens, seed=clients,
    )  # fmt: skip


@contextmanager
def _checkpoint(args: argparse.Namespace) -> Iterator[Path]:
    """The folder that is named, the one that ships, or a new one with random weights and GPT-2's tokens."""
    if args.random_shape is None:
        yield args.checkpoint or shipped_checkpoint()
        return
    with tempfile.TemporaryDirectory() as folder:
        dtype = getattr(torch, args.dtype)
        save_checkpoint(Path(folder) / "random", random_model(512, "cpu", dtype), Tokenizer.from_name("gpt2"), {})
        yield Path(folder) / "random"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, help="checkpoint folder (the one that ships)")
    parser.add_argument(
        "--random-shape", choices=["124m"], help="random weights of this shape in place of a checkpoint"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests-per-client", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=32, help="random ones (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of each answer, at least 2 (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="that clients are divided among (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--cache-bytes", type=int, default=4 << 30, help="of the fork-state cache (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
