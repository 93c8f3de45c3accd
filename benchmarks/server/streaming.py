r"""`thoughtbubbles serve` under streaming clients on a CPU: tokens/s, latencies and memory, beside the engine alone.

    python -m benchmarks.server.streaming [--clients 1 8 32 128] [--loads sampled] [--threads 1] [--memory 1 8 64]
    python -m benchmarks.server.streaming --url vllm=http://127.0.0.1:8001

All clients are in this process. Each sends one request after the other: a prompt of 16 to 64 random tokens, 128 new
ones. By turns the engine alone completes the same requests, a server streams them, and so does every other server that
`--url` names, which must speak OpenAI's completions API and know `ignore_eos`. Every number is the median over runs;
one run before them is left out.

An event may have several tokens, so the times between events are printed beside the mean number of tokens in one.
`--memory` measures the most resident memory of a fresh server while so many requests run.
"""

import argparse
import asyncio
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import httpx

from benchmarks.header import header
from benchmarks.server.alone import complete_alone
from benchmarks.server.clients import Answer, Load, Request, put_load, require_complete
from benchmarks.server.serving import resident_mib, serving
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import load_checkpoint, shipped_checkpoint

PROMPT_TOKENS, NEW, VOCABULARY = (16, 64), 128, 8000
LOADS: Mapping[str, Mapping[str, float]] = {
    "sampled": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.9},
    "greedy": {"temperature": 0},
}
COLUMNS = ("load   ", "clients", "server      ", "tokens/s", "first token p50 ms", "p99 ms", "between events p50 ms",
           "p99 ms", "tokens an event")  # fmt: skip
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The requests of all clients."""

    load: str
    clients: int
    requests: int
    """Of each client."""
    seed: int
    """Prompts of different seeds differ."""

    def prompt(self, client: int, number: int) -> list[int]:
        """Return random token ids, as many as in every seed."""
        length = random.Random(f"{client}/{number}").randint(*PROMPT_TOKENS)
        own = f"{self.load}/{self.clients}/{self.seed}/{client}/{number}"  # else an earlier prompt would be cached
        return random.Random(own).choices(range(256, VOCABULARY), k=length)

    def request(self, model: str, client: int, number: int) -> Request:
        """Return a streamed request of `NEW` tokens."""
        return Request(body={
            "model": model, "prompt": self.prompt(client, number), "max_tokens": NEW, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}, **LOADS[self.load],
        })  # fmt: skip


Complete = Callable[[Requests], list[Answer]]


def main() -> None:
    """Print the table, and that of memory."""
    args = _arguments()
    set_threads(args.threads)
    print(header(), flush=True)
    options = ("--threads", str(args.threads), *args.server_options)
    with ExitStack() as stack:
        urls = {"serve": stack.enter_context(serving(*options))[0], **dict(each.split("=", 1) for each in args.url)}
        ways: dict[str, Complete] = {"engine alone": partial(_generate, _engine(max(args.clients)))}
        ways |= {name: partial(_send, url, _model_of(url)) for name, url in urls.items()}
        print("  ".join(COLUMNS), flush=True)
        for load in args.loads:
            for clients in args.clients:
                _measure(ways, load, clients, args)
    if args.memory:
        print("\nrequests  most resident MiB")
    for clients in args.memory:
        with serving(*options) as (address, pid):
            requests = Requests(load=args.loads[0], clients=clients, requests=1, seed=0)
            print(f"{clients:8}  {asyncio.run(_most_resident(address, pid, requests)):17.0f}", flush=True)


def _measure(ways: Mapping[str, Complete], load: str, clients: int, args: argparse.Namespace) -> None:
    """Print a line of each way."""
    each = max(1, args.requests // clients)
    rows: dict[str, list[Sequence[float]]] = {name: [] for name in ways}
    for run in range(args.runs + 1):
        for name, way in ways.items():
            answers = way(Requests(load=load, clients=clients, requests=each, seed=run))
            rows[name] += [numbers(answers)] if run else []
    for name, runs in rows.items():
        rate, *times, chunk = (statistics.median(column) for column in zip(*runs, strict=True))
        shown = (f"{1000 * seconds:.1f}" for seconds in times)
        cells = (load, str(clients), name, f"{rate:,.0f}", *shown, f"{chunk:.2f}")
        print("  ".join(cell.rjust(len(title)) for cell, title in zip(cells, COLUMNS, strict=True)), flush=True)


def numbers(answers: Sequence[Answer]) -> Sequence[float]:
    """Return tokens/s, first-token times, times between events (both the 50th and 99th percentile), tokens an event."""
    began, ended = min(each.sent for each in answers), max(each.arrivals[-1] for each in answers)
    tokens, events = sum(each.tokens for each in answers), sum(len(each.arrivals) for each in answers)
    first = [each.first for each in answers]
    gaps = [later - earlier for each in answers for earlier, later in pairwise(each.arrivals)]
    percentiles = (_percentile(times, share) for times in (first, gaps) for share in (0.5, 0.99))
    return tokens / (ended - began), *percentiles, tokens / events


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def _load(address: str, model: str, requests: Requests) -> Load:
    return Load(address=address, request=partial(requests.request, model), clients=requests.clients,
                requests=requests.requests)  # fmt: skip


def _send(address: str, model: str, requests: Requests) -> list[Answer]:
    """Return the answers of a server."""
    answers = asyncio.run(put_load(_load(address, model, requests)))
    require_complete(answers)
    assert all(each.tokens == NEW for each in answers), "answers of another length than was requested"
    return answers


def _model_of(address: str) -> str:
    model: str = httpx.get(f"{address}/v1/models").json()["data"][0]["id"]
    return model


def _engine(requests: int) -> Engine:
    checkpoint = load_checkpoint(shipped_checkpoint())
    return Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(max_batch_size=requests))


def _generate(engine: Engine, requests: Requests) -> list[Answer]:
    """Return the answers of the engine without a server."""
    load: Mapping[str, Any] = LOADS[requests.load]
    params = SamplingParams(max_tokens=NEW, ignore_eos=True, **load)

    def ask(client: int, number: int) -> tuple[list[int], SamplingParams]:
        return requests.prompt(client, number), params

    return complete_alone(engine, ask, clients=requests.clients, requests=requests.requests)


async def _most_resident(address: str, pid: int, requests: Requests) -> float:
    """Return the most resident memory of a server while it streams these requests, in MiB."""
    sending, most = asyncio.create_task(put_load(_load(address, _model_of(address), requests))), 0.0
    while not sending.done():
        most = max(most, resident_mib(pid))
        await asyncio.sleep(SAMPLE_SECONDS)
    require_complete(sending.result())
    return most


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--requests", type=int, default=64, help="of a run; at least one of each client (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="that medians are taken over (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of engine and server (%(default)s)")
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="requests that run while memory is measured")
    parser.add_argument("--url", nargs="+", default=[], metavar="NAME=URL", help="other servers")
    parser.add_argument("server_options", nargs="*", help="further options of our server, after --")
    return parser.parse_args()


if __name__ == "__main__":
    main()
