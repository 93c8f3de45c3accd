r"""What HTTP costs: tokens/s and latencies of clients of a real server, against the engine alone, in one run.

    python -m benchmarks.server.http [--clients 1 8] [--max-tokens 256]
    python -m benchmarks.server.http --random-shape 124m --device cuda --dtype bfloat16 --clients 1 64 --processes 4 \
        --prompt-tokens 128 --max-tokens 128 --requests-per-client 4

The model is loaded once. The engine first completes the requests alone, on the thread that will serve it; then a server
completes like requests for clients in other processes. Each client sends its requests one after the other, and the
engine alone does the same: so many run at a time, and the next begins when one ends. Requests are sent `together`, with
answers of one length, so that all clients send at once; with several clients also `apart`, with answers from half as
long to half as long again, so that most requests begin while others run.

    python -m benchmarks.server.http --stub --clients 64 --prompt-tokens 128 --max-tokens 128 --requests-per-client 20

With `--stub` an engine serves that computes nothing and takes as long as a GPU, which shows the server's own cost on a
machine without one.

Each line has the tokens/s of both and their ratio (share); the time to the first token, its 50th and 99th percentile
and the engine's own 50th; the inter-token time of both, as the median over requests, and their ratio; the mean number
of tokens in a chunk; and the processor time of the server's event loop for each request, if it is the only one: with
`--http-processes` several share the connections.
"""

import argparse
import asyncio
import gc
import os
import pickle
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from uvicorn.loops.auto import auto_loop_factory

from benchmarks.header import header
from benchmarks.server.alone import complete_alone
from benchmarks.server.clients import Answer, Load, Request, put_load, require_complete
from benchmarks.server.stub_engine import load_stub
from benchmarks.shapes import numbered_tokens, random_model
from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.model import save_checkpoint
from thoughtbubbles.server.app import create_app
from thoughtbubbles.server.bridge.loading import load_model
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.lifecycle import serve
from thoughtbubbles.server.observe.logs import writing
from thoughtbubbles.server.other_process import run_other
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings
from thoughtbubbles.server.sockets import listen

COLUMNS = ("clients", "asking  ", "tokens/s", "engine alone", "share", "first token p50 ms", "p99 ms",
           "engine alone p50 ms", "inter-token ms", "engine alone ms", "ratio", "tokens a chunk",
           "loop us a request")  # fmt: skip
HANDING_OUT_SECONDS = 1.0
"""Time for the clients' processes to receive their work, from a process that will be busy serving."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The requests of all clients: random prompts, and how long their answers are."""

    clients: int
    requests: int
    """Of each client."""
    prompt_tokens: int
    vocabulary: int
    """Token ids of prompts are below it, end-of-text not among them."""
    max_tokens: int
    """Tokens of each answer; on average where answers differ in length."""
    apart: bool
    """Whether answers differ in length, by up to a half, so that clients do not send all at once."""
    seed: str
    """Prompts of different seeds differ."""

    def prompt(self, client: int, number: int) -> list[int]:
        """Return random token ids."""
        return random.Random(f"{self.seed}/{client}/{number}").choices(range(self.vocabulary), k=self.prompt_tokens)

    def tokens(self, client: int, number: int) -> int:
        """Return the length of the answer, which the seed does not change."""
        half = self.max_tokens // 2 if self.apart else 0
        return self.max_tokens + random.Random(f"{client}/{number}").randint(-half, half)

    def request(self, client: int, number: int) -> Request:
        """Return a request that streams exactly `tokens` tokens."""
        return Request(body={
            "prompt": self.prompt(client, number), "max_tokens": self.tokens(client, number), "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        })  # fmt: skip


Trial = tuple[Prompts, list[Answer]]


def main() -> None:
    """Print the table."""
    args = _arguments()
    context = get_context("spawn")
    every = context.Barrier(args.processes)  # no process gets work before all have started: else the first get it all
    with (
        _checkpoint(args) as folder,
        tempfile.NamedTemporaryFile() as results,
        ProcessPoolExecutor(args.processes, context, every.wait) as processes,
    ):
        for _ in range(args.processes):  # each starts one more: meanwhile the model is loaded
            processes.submit(int)
        settings = ServerSettings(
            checkpoint=folder,
            device="cuda" if args.stub else args.device,
            dtype=args.dtype,
            max_batch_size=max(args.clients),
            cache_bytes=args.cache_bytes,
            http_processes=args.http_processes,
        )
        service = Service.create(settings, partial(_loaded, settings, args, results.name))
        with _silence(), writing("text"), asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            trials = runner.run(_served(service, Path(results.name), processes, args.processes))
    print(header())
    print("  ".join(COLUMNS))
    for (prompts, engine), answers, seconds in trials:
        _print_row(prompts, engine, answers, seconds if args.http_processes == 1 else None)


def _loaded(settings: ServerSettings, args: argparse.Namespace, results: str) -> tuple[Engine, ServedModel]:
    """Load what a server loads, and complete the requests with the engine alone, where it will serve.

    The answers are written to the file `results`, since another process may serve.
    """
    engine, served = load_stub() if args.stub else load_model(settings)
    gc.freeze()  # as in a server: the collector does not scan what has been loaded
    alone: list[Trial] = []
    for prompts in _trials(args, served.tokenizer.vocab_size - 1):
        _generate(engine, _warm_up(prompts))
        alone.append((prompts, _generate(engine, prompts)))
    Path(results).write_bytes(pickle.dumps(alone))
    return engine, served


def _trials(args: argparse.Namespace, vocabulary: int) -> Iterator[Prompts]:
    for clients in args.clients:
        for apart in (False, True)[: min(clients, 2)]:
            yield Prompts(
                clients=clients, requests=args.requests_per_client, prompt_tokens=args.prompt_tokens,
                vocabulary=vocabulary, max_tokens=args.max_tokens, apart=apart, seed=f"{clients}/{apart}",
            )  # fmt: skip


def _warm_up(prompts: Prompts) -> Prompts:
    """Return one request of each client, which is not measured."""
    return replace(prompts, requests=1, seed=f"{prompts.seed} warm")


async def _served(
    service: Service, alone: Path, processes: Executor, number: int
) -> list[tuple[Trial, list[Answer], float]]:
    """Return what the engine did alone, the answers over HTTP to other prompts, and the event loop's processor time."""
    answers, seconds = [], []
    async with _address_of(service) as address:
        trials: list[Trial] = pickle.loads(await asyncio.to_thread(alone.read_bytes))  # noqa: S301 - our own
        for prompts, _ in trials:
            others = replace(prompts, seed=f"{prompts.seed} HTTP")
            await asyncio.to_thread(_send, address, _warm_up(others), processes, number)
            began = time.thread_time()  # of this thread, which is the event loop's
            answers.append(await asyncio.to_thread(_send, address, others, processes, number))
            seconds.append(time.thread_time() - began)
    return list(zip(trials, answers, seconds, strict=True))


def _send(address: str, prompts: Prompts, processes: Executor, number: int) -> list[Answer]:
    """Return the answers to clients that `number` processes share and that all begin at once."""
    load = Load(address=address, request=prompts.request, clients=prompts.clients, requests=prompts.requests,
                begin=time.monotonic() + HANDING_OUT_SECONDS)  # fmt: skip
    shares = [range(start, load.clients, number) for start in range(min(number, load.clients))]
    answers = [each for share in processes.map(_share, [load] * len(shares), shares) for each in share]
    require_complete(answers)
    expected = sorted(prompts.tokens(c, r) for c in range(prompts.clients) for r in range(prompts.requests))
    assert sorted(each.tokens for each in answers) == expected, "answers of other lengths than were requested"
    return answers


def _share(load: Load, clients: range) -> list[Answer]:
    return asyncio.run(put_load(load, clients))


@asynccontextmanager
async def _address_of(service: Service) -> AsyncIterator[str]:
    """Serve on a free port as `python -m thoughtbubbles.server` does; give the address once all processes listen."""
    with listen(service.settings.host, 0, shared=service.settings.http_processes > 1) as listener:
        running = asyncio.create_task(serve(service, create_app(service), listener, run_other))
        loaded = asyncio.create_task(service.worker.loaded.wait())
        await asyncio.wait({running, loaded}, return_when=asyncio.FIRST_COMPLETED)
        if service.worker.failure is not None:
            raise service.worker.failure
        await service.processes.announces()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            signal.raise_signal(signal.SIGTERM)
            await running


def _print_row(prompts: Prompts, engine: list[Answer], served: list[Answer], seconds: float | None) -> None:
    first, engine_first = (sorted(1000 * each.first for each in answers) for answers in (served, engine))
    rate, engine_rate = _rate(served), _rate(engine)
    gap, engine_gap = (1000 * statistics.median(each.inter_token for each in answers) for answers in (served, engine))
    chunk = sum(each.tokens for each in served) / sum(len(each.arrivals) for each in served)
    cells = (str(prompts.clients), "apart" if prompts.apart else "together", f"{rate:.0f}", f"{engine_rate:.0f}",
             f"{rate / engine_rate:.2f}", f"{statistics.median(first):.1f}", f"{first[int(0.99 * len(first))]:.1f}",
             f"{statistics.median(engine_first):.1f}", f"{gap:.2f}", f"{engine_gap:.2f}", f"{gap / engine_gap:.2f}",
             f"{chunk:.2f}", "" if seconds is None else f"{1e6 * seconds / len(served):.0f}")  # fmt: skip
    print("  ".join(cell.rjust(len(name)) for cell, name in zip(cells, COLUMNS, strict=True)))


def _rate(answers: list[Answer]) -> float:
    """Return the tokens/s of all answers together."""
    began, ended = min(each.sent for each in answers), max(each.arrivals[-1] for each in answers)
    return sum(each.tokens for each in answers) / (ended - began)


def _generate(engine: Engine, prompts: Prompts) -> list[Answer]:
    """Return the answers of the engine without a server."""

    def ask(client: int, number: int) -> tuple[list[int], SamplingParams]:
        params = SamplingParams(max_tokens=prompts.tokens(client, number), ignore_eos=True)
        return prompts.prompt(client, number), params

    return complete_alone(engine, ask, clients=prompts.clients, requests=prompts.requests)


@contextmanager
def _silence() -> Iterator[None]:
    """Send the logs of all processes that are started meanwhile to /dev/null: they are written as ever."""
    sys.stderr.flush()
    logs = os.dup(sys.stderr.fileno())
    with Path(os.devnull).open("w", encoding="utf-8") as null, redirect_stdout(null):
        os.dup2(null.fileno(), sys.stderr.fileno())
        try:
            yield
        finally:
            os.dup2(logs, sys.stderr.fileno())
            os.close(logs)


@contextmanager
def _checkpoint(args: argparse.Namespace) -> Iterator[Path | None]:
    """Give the checkpoint folder: the named one, None for the shipped one, or a new one with random weights."""
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
    parser.add_argument("--stub", action="store_true", help="an engine that computes nothing in place of a checkpoint")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests-per-client", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=32, help="random ones (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of each answer, at least 4 (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes that share the clients (%(default)s)")
    parser.add_argument("--http-processes", type=int, default=1, help="of the server (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--cache-bytes", type=int, default=4 << 30, help="of the fork-state cache (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
