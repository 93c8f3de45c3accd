r"""Several servers at one address: tokens/s of each number of them, their prefix hits, and one killed under load.

    python -m benchmarks.server.replicas [--behind haproxy] [--replicas 1 2] [--clients 8]
    python -m benchmarks.server.replicas --behind haproxy --replicas 1 2 --clients 64 --processes 8 \
        --random-shape 124m --device cuda --dtype bfloat16

They are behind Ray's proxies, behind Ray's HAProxy, or behind HAProxy without Ray; there the first row is one server
without a proxy. Each replica has a GPU, or a thread of a CPU. Each of `--clients` clients a replica streams its
requests one after the other. A prompt begins with one of `--prefixes` a replica, and ends like no other: if equal
beginnings go to one replica, several replicas find nearly as many prompt tokens in their prefix caches as one does.

At last one of the largest number of replicas is killed while all clients wait for answers. Each request must have one
outcome: an answer; or under Ray an error of the API (503, or the last event of a stream, counted as `broken`), behind
HAProxy alone 502, or a stream whose connection breaks (`ConnectionResetError`).
"""

import argparse
import asyncio
import os
import random
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

import torch

from benchmarks.header import header
from benchmarks.server.clients import Answer, Load, Request, outcomes, put_load, require_complete
from benchmarks.server.fleets import DIRECT, KINDS, Replicas
from benchmarks.shapes import numbered_tokens, random_model
from thoughtbubbles.model import save_checkpoint

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
    replicas: Replicas

    @property
    def number(self) -> int:
        """All of them."""
        each: int = self.args.clients
        return self.replicas.number * each

    def put(self, requests: int, seed: str) -> tuple[list[Answer], float]:
        """Return the answers to `requests` of each client, and when the first were sent."""
        args, begin = self.args, time.monotonic() + HANDING_OUT_SECONDS
        prompts = Prompts(
            prefixes=args.prefixes * self.replicas.number, prefix_tokens=args.prefix_tokens, own_tokens=args.own_tokens,
            max_tokens=args.max_tokens, seed=seed,
        )  # fmt: skip
        load = Load(
            address=self.replicas.address, request=prompts.request, clients=self.number, requests=requests, begin=begin
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
        for replicas in KINDS[args.behind](args.replicas, options):
            clients = Clients(args=args, processes=processes, replicas=replicas)
            rate, hits = _measure(clients)
            first = first or rate
            row = f"{replicas.name:>8}  {clients.number:7}  {rate:8,.0f}  {rate / first:15.2f}  {hits:.3f}"
            print(row, flush=True)
            if replicas.number == max(args.replicas) and replicas.name != DIRECT:
                _kill_one(clients)


def _measure(clients: Clients) -> tuple[float, float]:
    """Return tokens/s from the first request to the last token, and the share of prompt tokens found in caches."""
    name = clients.replicas.name
    require_complete(clients.put(1, f"{name}: warm-up")[0])
    before = clients.replicas.lookups()
    answers, begin = clients.put(clients.args.requests, f"{name}: timed")
    require_complete(answers)
    queries, hits = (after - was for after, was in zip(clients.replicas.lookups(), before, strict=True))
    seconds = max(each.arrivals[-1] for each in answers) - begin
    return sum(each.tokens for each in answers) / seconds, hits / queries


def _kill_one(clients: Clients) -> None:
    """Kill a replica a second after all clients begin; print the outcomes. Raise `AssertionError` for any other."""
    replicas = clients.replicas
    victim = replicas.processes()[0]
    killer = threading.Timer(HANDING_OUT_SECONDS + 1, os.kill, (victim, SIGKILL))
    killer.start()
    answers, _ = clients.put(clients.args.requests, "killed")
    killer.join()
    seen = outcomes(answers)
    print(f"one of them killed: {dict(sorted(seen.items()))} of {len(answers)} requests", flush=True)
    assert victim not in replicas.processes(), "the replica was killed"
    assert set(seen) <= {"200"} | replicas.broken, seen


def _send(load: Load, clients: range) -> list[Answer]:
    return asyncio.run(put_load(load, clients))


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
    parser.add_argument("--behind", choices=KINDS, default="ray", help="what the clients talk to (%(default)s)")
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
