"""An hour of mixed requests at a steady rate: is the server's resident memory flat, and is nothing lost or held?

    python -m benchmarks.server.soak [--minutes 60] [--rate 2] [--log FILE]
    python -m benchmarks.server.soak --minutes 9 --rate 40 -- --device cuda --cache-bytes 64000000

Requests come at random moments, whether or not earlier ones have ended: streams, whole answers, several choices, long
prompts, scored prompts, all rules, any mix of sampling fields, clients that leave, and mistakes; beside them
tokenization and metrics. The log gets resident memory every ten seconds. The command fails if memory after a quarter of
the time and at the end differ by more than `MOST_GROWTH`, if a request has an unexpected outcome, or if the idle server
then counts a request as unfinished or the fork-state cache as broken. Refusals because the queue is full are expected:
the rate may be more than a server can serve.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.header import header
from benchmarks.server.clients import Load, Request, outcomes, put_load
from benchmarks.server.serving import read_metrics, resident_mib, serving

MOST_GROWTH = 0.02
"""Of resident memory, from a quarter of the time to the end."""
WINDOW = 30
"""Samples whose mean is compared, since each sample includes the requests of its moment."""
SAMPLE_SECONDS = 10.0
IDLE_SECONDS = 8.0
"""After the last answer: an idle engine checks its cache after five."""
VOCABULARY = 8000
"""Token ids of prompts are below it."""

Body = dict[str, Any]


Samples = list[tuple[float, float]]
"""Seconds since the start, and resident MiB."""


def _ids(dice: random.Random, least: int, most: int) -> list[int]:
    return [dice.randrange(VOCABULARY) for _ in range(dice.randint(least, most))]


def _sampling(dice: random.Random) -> Body:
    """Return some of the fields that say how tokens are drawn."""
    fields: Body = {
        "temperature": dice.choice([0, 0.7, 1.3]), "top_p": dice.uniform(0.1, 1), "top_k": dice.randint(1, 200),
        "min_p": dice.uniform(0, 0.3), "presence_penalty": dice.uniform(-2, 2), "logprobs": dice.randint(0, 20),
        "frequency_penalty": dice.uniform(-2, 2), "repetition_penalty": dice.uniform(0.8, 1.5), "min_tokens": 1,
        "logit_bias": {str(token): dice.uniform(-100, 100) for token in _ids(dice, 1, 50)},
        "seed": dice.getrandbits(32),
    }  # fmt: skip
    return {name: fields[name] for name in fields if dice.random() < 0.4}


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
    "mixed": (10, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": dice.randint(1, 48), **_sampling(dice)}),
    "left": (6, lambda dice: {"prompt": _ids(dice, 4, 200), "max_tokens": 200, "stream": dice.random() < 0.5}),
    "mistake": (4, lambda dice: {"prompt": _ids(dice, 4, 60), "max_tokens": 100_000}),
}
"""How many of a hundred requests are of each kind, and the body of one."""


OPERATIONS: Sequence[tuple[str, Callable[[random.Random], Body] | None]] = (
    ("/tokenize", lambda dice: {"prompt": "the river " * dice.randint(1, 200)}),
    ("/detokenize", lambda dice: {"tokens": _ids(dice, 1, 500)}),
    ("/metrics", None),
)
OPERATION_SHARE = 0.3
"""Operations for each request."""


@dataclass(frozen=True)
class Mixture:
    """Random requests of all kinds."""

    seed: int

    def request(self, client: int, _: int) -> Request:
        """Return a completion; one that is to leave does so before a second has passed."""
        dice = random.Random(f"{self.seed}/{client}")
        [kind] = dice.choices(list(KINDS), [share for share, _ in KINDS.values()])
        leave_after = dice.uniform(0.05, 1) if kind == "left" else None
        return Request(body={"ignore_eos": True, **KINDS[kind][1](dice)}, kind=kind, leave_after=leave_after)

    def operation(self, client: int, _: int) -> Request:
        """Return a request that needs no engine."""
        dice = random.Random(f"{self.seed}/{client}/operation")
        path, body = dice.choice(OPERATIONS)
        return Request(path=path, body=body and body(dice), kind=path.strip("/"))


async def _watch(samples: Samples, pid: int, log: Path | None) -> None:
    """Sample resident memory until cancelled."""
    start = time.monotonic()
    while True:
        samples.append((time.monotonic() - start, resident_mib(pid)))
        if log is not None:
            with log.open("a") as file:
                file.write(f"{samples[-1][0]:8.0f} s  {samples[-1][1]:8.1f} MiB\n")
        await asyncio.sleep(SAMPLE_SECONDS)


async def _run(address: str, pid: int, args: argparse.Namespace) -> tuple[Counter[str], Samples]:
    samples: Samples = []
    watching, mixture = asyncio.create_task(_watch(samples, pid, args.log)), Mixture(args.seed)
    loads = [
        Load(address=address, request=request, rate=rate, seconds=60 * args.minutes, seed=args.seed)
        for request, rate in ((mixture.request, args.rate), (mixture.operation, OPERATION_SHARE * args.rate))
    ]
    answers = await asyncio.gather(*map(put_load, loads))
    watching.cancel()
    return sum(map(outcomes, answers), Counter()), samples


def growth(samples: Samples) -> tuple[float, float]:
    """Return the mean resident MiB after a quarter of the time, and at the end."""
    sizes = [size for _, size in samples]
    quarter, window = len(sizes) // 4, max(1, min(WINDOW, len(sizes) // 4))
    return statistics.mean(sizes[quarter : quarter + window]), statistics.mean(sizes[-window:])


def held(count: Mapping[str, float]) -> list[str]:
    """Return what an idle server should not count: unfinished requests, cached streams in use, a broken cache."""
    names = ("num_requests_running", "num_requests_waiting", "cache_streams", "cache_integrity_failures_total",
             "non_finite_logits_total")  # fmt: skip
    held = [f"{name}: {count[name]:.0f}" for name in names if count[name]]
    return held if count["cache_integrity_checks_total"] else [*held, "the cache was never checked"]


def main() -> int:
    """Print the table; return 1 if memory grew or a request failed."""
    args = _arguments()
    os.nice(args.nice)
    print(header(), flush=True)
    with serving(*args.server_options) as (address, pid):
        seen, samples = asyncio.run(_run(address, pid, args))
        time.sleep(IDLE_SECONDS)
        count = read_metrics(address)
        cpu_seconds = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / 100
    print("kind and outcome         requests")
    for outcome, number in sorted(seen.items()):
        print(f"{outcome:24} {number:8}")
    print(
        f"{count['preemptions_total']:.0f} preemptions, {count['cache_integrity_checks_total']:.0f} checks of the cache"
    )
    print(f"the server used {cpu_seconds / samples[-1][0]:.0%} of a core\nminute  resident MiB")
    for seconds, size in samples[:: max(1, len(samples) // 24)]:
        print(f"{seconds / 60:6.1f}  {size:12.1f}")
    before, after = growth(samples)
    print(f"mean after a quarter {before:.1f} MiB, at the end {after:.1f} MiB: {after / before - 1:+.2%}")
    unmeant = {name for name in seen if not name.endswith((" 200", " 429", "left left", "mistake 400"))}
    complaints = [f"{name}: {seen[name]}" for name in sorted(unmeant)] + held(count)
    complaints += ["memory grew"] if after > (1 + MOST_GROWTH) * before else []
    print("\n".join(complaints) or "every request was answered, nothing is held, memory flat")
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
