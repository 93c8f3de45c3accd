"""An hour of mixed load at a steady rate: resident memory of the server, and whether it stays flat.

    python -m benchmarks.server.soak [--minutes 60] [--rate 2] [--log FILE]

Requests come at random moments, whatever became of those before: streams, whole answers, several choices, long prompts,
scored prompts, all rules, clients that leave, and mistakes. Every ten seconds resident memory goes to the log. The
command fails when memory after a quarter of the time and at the end differ by more than `MOST_GROWTH`.
"""

import argparse
import asyncio
import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.header import header
from benchmarks.server.serving import serving

MOST_GROWTH = 0.02
"""Of resident memory, between a quarter of the time and the end."""
WINDOW = 30
"""Samples whose mean is compared: one sample has requests of its own in it."""
SAMPLE_SECONDS = 10.0
VOCABULARY = 8000
"""Token ids that prompts are made of."""

Body = dict[str, Any]


@dataclass
class Soak:
    """Outcomes of requests, and samples of memory."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """By kind of request and HTTP status."""
    samples: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the start, and resident bytes."""


def _ids(dice: random.Random, least: int, most: int) -> list[int]:
    return [dice.randrange(VOCABULARY) for _ in range(dice.randint(least, most))]


KINDS: Mapping[str, tuple[int, Callable[[random.Random], Body]]] = {
    "stream": (30, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": dice.randint(8, 64), "stream": True}),
    "whole": (20, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": dice.randint(8, 64)}),
    "shared": (10, lambda dice: {"prompt": [*range(100, 200), *_ids(dice, 1, 20)], "max_tokens": 16}),
    "long": (6, lambda dice: {"prompt": _ids(dice, 300, 900), "max_tokens": 8}),
    "choices": (6, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": 16, "n": 4, "stream": True}),
    "best": (3, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": 12, "best_of": 4}),
    "scored": (4, lambda dice: {"prompt": _ids(dice, 60, 250), "max_tokens": 1, "echo": True, "logprobs": 5}),
    "counted": (3, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": 16, "return_fork_counts": True}),
    "ratio": (4, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": 16, "fork_ratio": dice.uniform(1, 4)}),
    "dynamic": (3, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": 12, "fork_selection": "dynamic"}),
    "restricted": (4, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": 16, "top_p": 0.9, "stop": ["the"]}),
    "left": (6, lambda dice: {"prompt": _ids(dice, 4, 200), "max_tokens": 200, "stream": dice.random() < 0.5}),
    "mistake": (4, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": 100_000}),
}
"""How many of a hundred requests are of each kind, and what one says."""


async def _ask(http: httpx.AsyncClient, kind: str, body: Body, patience: float) -> str:
    """Send one request and read its answer to the end; a kind that leaves closes the connection after `patience`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience if kind == "left" else None):
            async with http.stream("POST", "/v1/completions", json={"ignore_eos": True, **body}) as response:
                async for _ in response.aiter_bytes():
                    pass
            return str(response.status_code)
    return "left"


async def put_load(soak: Soak, address: str, *, seconds: float, rate: float, seed: int) -> None:
    """Send `rate` requests a second for so long, and wait for their answers."""
    dice, until = random.Random(seed), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)

    async def one(kind: str) -> None:
        patience, body = dice.uniform(0.05, 1), KINDS[kind][1](dice)
        try:
            outcome = await _ask(http, kind, body, patience)
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        soak.outcomes[f"{kind} {outcome}"] += 1

    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as http, asyncio.TaskGroup() as group:
        while time.monotonic() < until:
            await asyncio.sleep(dice.expovariate(rate))
            [kind] = dice.choices(list(KINDS), [share for share, _ in KINDS.values()])
            group.create_task(one(kind))
            await _operate(http, group, dice)


async def _operate(http: httpx.AsyncClient, group: asyncio.TaskGroup, dice: random.Random) -> None:
    """What else a server is asked now and then: tokens, and its metrics."""
    others: Sequence[Callable[[], Coroutine[Any, Any, object]]] = (
        lambda: http.post("/tokenize", json={"prompt": "the river " * dice.randint(1, 200)}),
        lambda: http.post("/detokenize", json={"tokens": _ids(dice, 1, 500)}),
        lambda: http.get("/metrics"),
    )
    if dice.random() < 0.3:
        group.create_task(dice.choice(others)())


async def _watch(soak: Soak, pid: int, log: Path | None) -> None:
    """Sample resident memory, until cancelled."""
    start = time.monotonic()
    while True:
        soak.samples.append((time.monotonic() - start, resident_bytes(pid)))
        if log is not None:
            with log.open("a") as file:
                file.write(f"{soak.samples[-1][0]:8.0f} s  {soak.samples[-1][1] / 2**20:8.1f} MiB\n")
        await asyncio.sleep(SAMPLE_SECONDS)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


async def _run(soak: Soak, address: str, pid: int, args: argparse.Namespace) -> None:
    watching = asyncio.create_task(_watch(soak, pid, args.log))
    await put_load(soak, address, seconds=60 * args.minutes, rate=args.rate, seed=args.seed)
    watching.cancel()


def growth(samples: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Mean resident bytes after a quarter of the time, and at the end."""
    sizes = [size for _, size in samples]
    quarter, window = len(sizes) // 4, max(1, min(WINDOW, len(sizes) // 4))
    return statistics.mean(sizes[quarter : quarter + window]), statistics.mean(sizes[-window:])


def main() -> int:
    """Print the table; 1 when memory grew or a request failed."""
    args = _arguments()
    os.nice(args.nice)
    print(header(), flush=True)
    soak = Soak()
    with serving(*args.server_options) as (address, pid):
        asyncio.run(_run(soak, address, pid, args))
        cpu_seconds = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / 100
    print("kind and outcome         requests")
    for outcome, number in sorted(soak.outcomes.items()):
        print(f"{outcome:24} {number:8}")
    print(f"the server used {cpu_seconds / soak.samples[-1][0]:.0%} of a core\nminute  resident MiB")
    for seconds, size in soak.samples[:: max(1, len(soak.samples) // 24)]:
        print(f"{seconds / 60:6.1f}  {size / 2**20:12.1f}")
    before, after = growth(soak.samples)
    print(
        f"mean after a quarter {before / 2**20:.1f} MiB, at the end {after / 2**20:.1f} MiB: {after / before - 1:+.2%}"
    )
    unmeant = {name for name in soak.outcomes if not name.endswith((" 200", "left left", "mistake 400"))}
    complaints = [f"{name}: {soak.outcomes[name]}" for name in sorted(unmeant)]
    complaints += ["memory grew"] if after > (1 + MOST_GROWTH) * before else []
    print("\n".join(complaints) or "every request was answered, memory flat")
    return bool(complaints)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nice", type=int, default=0, help="added to the niceness of client and server")
    parser.add_argument("--log", type=Path, help="file that gets resident memory every ten seconds")
    parser.add_argument("server_options", nargs="*", help="options of the server, after --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
