r"""What HTTP costs: tokens streamed to clients of a real server, against the engine without one, in one run.

    python -m benchmarks.http [--clients 1 8] [--max-tokens 256]
    python -m benchmarks.http --random-shape 124m --device cuda --dtype bfloat16 --clients 1 64 --processes 4 \
        --prompt-tokens 128 --max-tokens 128 --requests-per-client 4

The model is loaded once. On the thread that will serve it the engine does alone what clients will ask for; then it is
served, and clients in other processes ask the like of it. Each client asks as often as told, one request after the
other, and so is the engine alone: as many run at a time, the next begins when one ends. They do so `together`, where
answers are of one length, so that clients ask all at once; and where there are several also `apart`, with answers from
half as long to half as long again, so that most requests find the others running.

Each line tells tokens/s of both and their share; the time to the first token, its 50th and 99th percentile and the
engine's own 50th; the inter-token time of both, the median over requests, and their ratio; and how many tokens a chunk
had on average.
"""

import argparse
import asyncio
import gc
import os
import pickle
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from uvicorn.loops.auto import auto_loop_factory

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model
from benchmarks.streaming import Load, Stream, put_load
from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.model import save_checkpoint
from thoughtbubbles.server.app import create_app
from thoughtbubbles.server.bridge.loading import load_model
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.lifecycle import listen, serve
from thoughtbubbles.server.observe.logs import writing
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings

COLUMNS = ("clients", "asking  ", "tokens/s", "engine alone", "share", "first token p50 ms", "p99 ms",
           "engine alone p50 ms", "inter-token ms", "engine alone ms", "ratio", "tokens a chunk")  # fmt: skip
Trial = tuple[Load, list[Stream]]
"""What was asked, and the streams that came of it."""


def main() -> None:
    """Print the table."""
    args = _arguments()
    context = get_context("spawn")
    every = context.Barrier(args.processes)  # no process takes work before all are there: else the first take it all
    with (
        _checkpoint(args) as folder,
        tempfile.NamedTemporaryFile() as told,
        ProcessPoolExecutor(args.processes, context, every.wait) as processes,
    ):
        for _ in range(args.processes):  # each starts one more: meanwhile the model is loaded
            processes.submit(int)
        settings = ServerSettings(
            checkpoint=folder,
            device=args.device,
            dtype=args.dtype,
            max_batch_size=max(args.clients),
            cache_bytes=args.cache_bytes,
        )
        service = Service.create(settings, partial(_loaded, settings, args, told.name))
        with _silence(), writing("text"), asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            trials = runner.run(_served(service, Path(told.name), processes, args.processes))
    print(header())
    print("  ".join(COLUMNS))
    for (load, engine), streams in trials:
        _print_row(load, engine, streams)


def _loaded(settings: ServerSettings, args: argparse.Namespace, told: str) -> tuple[Engine, ServedModel]:
    """What a server loads, after it has done alone, where it will serve, what clients will ask of it.

    What came of that is written to a file, `told`, since it may be another process that serves.
    """
    engine, served = load_model(settings)
    gc.freeze()  # as where it serves: what has been loaded is not looked through for garbage
    alone: list[Trial] = []
    for load in _loads(args, served.tokenizer.vocab_size - 1):
        _generate(engine, _warm_up(load))
        alone.append((load, _generate(engine, load)))
    Path(told).write_bytes(pickle.dumps(alone))
    return engine, served


def _loads(args: argparse.Namespace, vocabulary: int) -> Iterator[Load]:
    for clients in args.clients:
        for apart in (False, True)[: min(clients, 2)]:
            yield Load(
                address="", clients=clients, requests=args.requests_per_client, prompt_tokens=args.prompt_tokens,
                vocabulary=vocabulary, max_tokens=args.max_tokens, apart=apart, seed=f"{clients}/{apart}",
            )  # fmt: skip


def _warm_up(load: Load) -> Load:
    """One request of each client that counts for nothing."""
    return replace(load, requests=1, seed=f"{load.seed} warm")


async def _served(service: Service, alone: Path, processes: Executor, number: int) -> list[tuple[Trial, list[Stream]]]:
    """What the engine did alone, and the streams of each load over HTTP, with other prompts than it has seen."""
    told = []
    async with _address_of(service) as address:
        trials: list[Trial] = pickle.loads(await asyncio.to_thread(alone.read_bytes))  # noqa: S301 - our own
        for load, _ in trials:
            asked = replace(load, address=address, seed=f"{load.seed} HTTP")
            await asyncio.to_thread(put_load, _warm_up(asked), processes, number)
            told.append(await asyncio.to_thread(put_load, asked, processes, number))
    return list(zip(trials, told, strict=True))


@asynccontextmanager
async def _address_of(service: Service) -> AsyncIterator[str]:
    """Where the service is, once it is loaded; it runs as `python -m thoughtbubbles.server` runs it, on a free port."""
    with listen(service.settings.host, 0) as listener:
        running = asyncio.create_task(serve(service, create_app(service), listener))
        loaded = asyncio.create_task(service.worker.loaded.wait())
        await asyncio.wait({running, loaded}, return_when=asyncio.FIRST_COMPLETED)
        if service.worker.failure is not None:
            raise service.worker.failure
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            signal.raise_signal(signal.SIGTERM)
            await running


def _print_row(load: Load, engine: list[Stream], streams: list[Stream]) -> None:
    first, engine_first = (sorted(1000 * each.first for each in told) for told in (streams, engine))
    rate, engine_rate = _rate(streams), _rate(engine)
    gap, engine_gap = (1000 * statistics.median(each.inter_token for each in told) for told in (streams, engine))
    chunk = sum(each.tokens for each in streams) / sum(len(each.arrivals) for each in streams)
    cells = (str(load.clients), "apart" if load.apart else "together", f"{rate:.0f}", f"{engine_rate:.0f}",
             f"{rate / engine_rate:.2f}", f"{statistics.median(first):.1f}", f"{first[int(0.99 * len(first))]:.1f}",
             f"{statistics.median(engine_first):.1f}", f"{gap:.2f}", f"{engine_gap:.2f}", f"{gap / engine_gap:.2f}",
             f"{chunk:.2f}")  # fmt: skip
    print("  ".join(cell.rjust(len(name)) for cell, name in zip(cells, COLUMNS, strict=True)))


def _rate(streams: list[Stream]) -> float:
    """Tokens a second of all together."""
    began, ended = min(each.asked for each in streams), max(each.arrivals[-1] for each in streams)
    return sum(each.tokens for each in streams) / (ended - began)


def _generate(engine: Engine, load: Load) -> list[Stream]:
    """The load's streams without a server."""
    asked: dict[str, float] = {}
    arrivals: dict[str, list[float]] = {}

    def ask(client: int, request: int) -> None:
        name = f"{client}/{request}"
        params = SamplingParams(max_tokens=load.tokens(client, request), ignore_eos=True)
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
    return [Stream(asked[name], arrivals[name], len(arrivals[name])) for name in asked]


@contextmanager
def _silence() -> Iterator[None]:
    """What the server says is written, as it always is, but to where nobody reads it."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def _checkpoint(args: argparse.Namespace) -> Iterator[Path | None]:
    """The folder that is named, None for the one that ships, or a new one: random weights, and numbers for tokens."""
    if args.random_shape is None:
        yield args.checkpoint
        return
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(512, "cpu", getattr(torch, args.dtype))
        save_checkpoint(Path(folder) / "random", model, numbered_tokens(model.config.vocab_size), {})
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
    parser.add_argument("--max-tokens", type=int, default=256, help="of each answer, at least 4 (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="that clients are divided among (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--cache-bytes", type=int, default=4 << 30, help="of the fork-state cache (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
