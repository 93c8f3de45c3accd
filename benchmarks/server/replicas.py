r"""Replicas under Ray Serve: tokens/s of each number of them, their prefix hits, and one killed under load.

    python -m benchmarks.server.replicas [--replicas 1 2] [--clients 8]
    python -m benchmarks.server.replicas --replicas 1 2 --clients 64 --processes 8 --random-shape 124m \
        --device cuda --dtype bfloat16

Each replica has a GPU, or a thread of a CPU. Each of `--clients` clients a replica streams its requests one after the
other. A prompt begins with one of `--prefixes` a replica, and ends like no other: if the router sends equal beginnings
to one replica, several replicas find nearly as many prompt tokens in their prefix caches as one does.

At last one of the largest number of replicas is killed while all clients wait for answers. Each request must have one
outcome: an answer, or an error of the API (503, or the last event of a stream, counted as `broken`).
"""

import argparse
import asyncio
import os
import random
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL

import httpx
import torch

from benchmarks.header import header
from benchmarks.server.clients import Answer, Load, Request, outcomes, put_load, require_complete
from benchmarks.server.ray_serve import ENVIRONMENT, PROCESSES
from benchmarks.server.serving import serving
from benchmarks.shapes import numbered_tokens, random_model
from thoughtbubbles.model import save_checkpoint

EXPECTED = {"200", "503", "broken"}
"""Outcomes of requests while a replica is killed."""
BYTES = 256
"""Token ids of prompts are below it: every vocabulary has them."""
HANDING_OUT_SECONDS = 1.0
"""Time for the clients' processes to receive their work."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The requests of all clients."""

    prefixes: int
    prefix_tokens: int
    own_tokens: int
    max_tokens: int
    seed: str
    """Prompts of different seeds have no beginning in common."""

    def request(self, client: int, number: int) -> Request:
        """Return a request that streams `max_tokens` tokens."""
        dice = random.Random(f"{self.seed}/{client}/{number}")
        beginning = random.Random(f"{self.seed}/{dice.randrange(self.prefixes)}")
        prompt = [rng.randrange(BYTES) for rng, tokens in
                  ((beginning, self.prefix_tokens), (dice, self.own_tokens)) for _ in range(tokens)]  # fmt: skip
        return Request(body={"prompt": prompt, "max_tokens": self.max_tokens, "ignore_eos": True, "temperature": 0,
                             "stream": True, "stream_options": {"include_usage": True}})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clients:
    """Clients of so many replicas, in several processes."""

    args: argparse.Namespace
    processes: ProcessPoolExecutor
    address: str
    replicas: int

    @property
    def number(self) -> int:
        """All of them."""
        each: int = self.args.clients
        return self.replicas * each

    def put(self, requests: int, seed: str) -> tuple[list[Answer], float]:
        """Return the answers to `requests` of each client, and when the first were sent."""
        args, begin = self.args, time.monotonic() + HANDING_OUT_SECONDS
        prompts = Prompts(
            prefixes=args.prefixes * self.replicas, prefix_tokens=args.prefix_tokens, own_tokens=args.own_tokens,
            max_tokens=args.max_tokens, seed=seed,
        )  # fmt: skip
        load = Load(
            address=self.address, request=prompts.request, clients=self.number, requests=requests, begin=begin
        )  # fmt: skip
        shares = [range(i, self.number, args.processes) for i in range(args.processes)]
        parts = [self.processes.submit(_send, load, share) for share in shares]
        return [answer for part in parts for answer in part.result()], begin


def main() -> None:
    """Print a line for each number of replicas, and the outcomes while one is killed."""
    args = _arguments()
    with _server_options(args) as options, ProcessPoolExecutor(args.processes, get_context("spawn")) as processes:
        print(f"{header()}\n# {os.cpu_count()} processors, {torch.cuda.device_count()} GPUs")
        print("replicas  clients  tokens/s  times the first  of the prompt tokens found in the prefix cache")
        first = None
        for replicas in args.replicas:
            bounds = ("--min-replicas", str(replicas), "--max-replicas", str(replicas))
            with serving(*options, *bounds, module="deploy.ray_serve", environment=ENVIRONMENT) as (address, session):
                _wait_for(replicas, session)
                clients = Clients(args=args, processes=processes, address=address, replicas=replicas)
                rate, hits = _measure(clients)
                first = first or rate
                print(f"{replicas:8}  {clients.number:7}  {rate:8,.0f}  {rate / first:15.2f}  {hits:.3f}", flush=True)
                if replicas == max(args.replicas):
                    _kill_one(clients, session)


def _measure(clients: Clients) -> tuple[float, float]:
    """Return tokens/s from the first request to the last token, and the share of prompt tokens found in caches."""
    require_complete(clients.put(1, "warm-up")[0])
    before = _lookups(clients.address)
    answers, begin = clients.put(clients.args.requests, "timed")
    require_complete(answers)
    queries, hits = (after - was for after, was in zip(_lookups(clients.address), before, strict=True))
    seconds = max(each.arrivals[-1] for each in answers) - begin
    return sum(each.tokens for each in answers) / seconds, hits / queries


def _kill_one(clients: Clients, session: int) -> None:
    """Kill a replica a second after all clients begin; print the outcomes. Raise `AssertionError` for any other."""
    victim = _replicas(session)[0]
    killer = threading.Timer(HANDING_OUT_SECONDS + 1, os.kill, (victim, SIGKILL))
    killer.start()
    answers, _ = clients.put(clients.args.requests, "killed")
    killer.join()
    seen = outcomes(answers)
    print(f"one of them killed: {dict(sorted(seen.items()))} of {len(answers)} requests", flush=True)
    assert victim not in _replicas(session), "the replica was killed"
    assert set(seen) <= EXPECTED, seen


def _send(load: Load, clients: range) -> list[Answer]:
    return asyncio.run(put_load(load, clients))


def _replicas(session: int) -> list[int]:
    """Return the process ids of the replicas in a session."""
    listed = subprocess.check_output(["ps", "-o", "pid=,args=", "-s", str(session)], text=True)  # noqa: S603, S607
    found = (line.split(maxsplit=1) for line in listed.splitlines())
    return [int(pid) for pid, *command in found if re.search(PROCESSES["replica"], "".join(command))]


def _wait_for(replicas: int, session: int) -> None:
    """Wait until so many replicas run. That each is ready, the warm-up shows."""
    for _ in range(1200):
        if len(_replicas(session)) == replicas:
            return
        time.sleep(0.1)
    raise TimeoutError(f"there were not {replicas} replicas within two minutes")


def _lookups(address: str) -> list[float]:
    """Return the prompt tokens that all replicas have looked up in their prefix caches, and those found."""
    text = httpx.get(f"{address}/metrics", timeout=30).text
    names = (f"thoughtbubbles_prefix_cache_{name}_total" for name in ("queries", "hits"))
    return [sum(map(float, re.findall(rf"^{name}\S* (\S+)$", text, re.MULTILINE))) for name in names]


@contextmanager
def _server_options(args: argparse.Namespace) -> Iterator[list[str]]:
    """Give the options of a server of the checkpoint, or of random weights in a folder that goes at the end."""
    options = ["--device", args.device, "--dtype", args.dtype, "--max-batch-size", str(args.clients)]
    options += ["--threads", "1"] if args.device == "cpu" else []
    with tempfile.TemporaryDirectory() as folder:
        if args.random_shape:
            model = random_model(512, "cpu", getattr(torch, args.dtype))
            save_checkpoint(Path(folder) / "random", model, numbered_tokens(model.config.vocab_size), {})
            options += ["--checkpoint", f"{folder}/random"]
        yield options


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clients", type=int, default=8, help="of each replica (%(default)s)")
    parser.add_argument("--requests", type=int, default=4, help="of each client (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes that share the clients (%(default)s)")
    parser.add_argument("--prefixes", type=int, default=4, help="for each replica (%(default)s)")
    parser.add_argument("--prefix-tokens", type=int, default=96)
    parser.add_argument("--own-tokens", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=128, help="of each answer (%(default)s)")
    parser.add_argument("--random-shape", choices=["124m"], help="random weights in place of the shipped checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
