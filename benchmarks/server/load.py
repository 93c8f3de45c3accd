"""Many clients against a small queue: every request has one outcome, none is lost or hangs, and memory stays flat.

    python -m benchmarks.server.load [--clients 200] [--seconds 60]

Each client sends one request after the other, streamed or not; of one in ten it does not await the end. The table
compares the outcomes with the server's own counts. The command fails if the two differ, or if memory grows.
"""

import argparse
import asyncio
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.header import header
from benchmarks.server.clients import Answer, Load, Request, outcomes, put_load
from benchmarks.server.serving import read_metrics, resident_mib, serving

MOST_GROWTH = 1.1
"""Memory at the end over memory after a quarter of the time, when every buffer has been allocated."""
EXPECTED = ("200", "429", "left")


@dataclass(frozen=True)
class Mixture:
    """Short requests of `max_tokens` at most, half of them streamed."""

    max_tokens: int

    def request(self, client: int, number: int) -> Request:
        """Return the request of a client, the same in every run."""
        dice = random.Random(f"{client}/{number}")
        body = {"prompt": "river " * dice.randint(1, 4), "max_tokens": dice.randint(1, self.max_tokens),
                "ignore_eos": True, "stream": dice.random() < 0.5}  # fmt: skip
        return Request(body=body, leave_after=dice.uniform(0, 0.3) if dice.random() < 0.1 else None)


def lost(seen: Counter[str], count: Mapping[str, float]) -> list[str]:
    """Return the contradictions between what clients saw and what the idle server counted."""
    finished = {name: n for name, n in count.items() if name.startswith("request_finished_total")}
    ended = sum(n for name, n in finished.items() if "length" in name or "stop" in name)
    wrong = seen.total() - sum(seen[name] for name in EXPECTED)
    checks = {
        f"{wrong} requests went wrong": wrong == 0,
        "accepted is not finished": count["request_accepted_total"] == sum(finished.values()),
        "requests still run or wait": count["num_requests_running"] == count["num_requests_waiting"] == 0,
        "fewer ended than clients saw": seen["200"] <= ended <= seen["200"] + seen["left"],
        "refusals differ": count.get('request_rejected_total{reason="queue_full"}', 0) >= seen["429"],
    }
    return [complaint for complaint, well in checks.items() if not well]


async def _run(address: str, pid: int, args: argparse.Namespace) -> tuple[list[Answer], list[float]]:
    """Return the answers, and resident memory once a second."""
    load = Load(
        address=address, request=Mixture(args.max_tokens).request, clients=args.clients, seconds=args.seconds
    )  # fmt: skip
    sending, sizes = asyncio.create_task(put_load(load)), list[float]()
    while not sending.done():
        sizes.append(resident_mib(pid))
        await asyncio.sleep(1)
    return sending.result(), sizes


def main() -> int:
    """Print the table; return 1 if counts differ or memory grew."""
    args = _arguments()
    print(header())
    with serving("--max-waiting-streams", str(args.max_waiting_streams), "--max-client-share", "1") as (address, pid):
        answers, sizes = asyncio.run(_run(address, pid, args))
        time.sleep(1)
        count = read_metrics(address)
    seen = outcomes(answers)
    print("outcome   requests")
    for outcome, number in sorted(seen.items()):
        print(f"{outcome:8}  {number:8}")
    times = sorted(each.arrivals[-1] - each.sent for each in answers if each.outcome == "200")
    print(f"200 took  p50 {statistics.median(times):.2f} s, p99 {times[int(0.99 * len(times))]:.2f} s")
    for name, value in sorted(count.items()):
        if value and re.match("request_(accepted|finished|rejected)_total", name):
            print(f"{name} {value:.0f}")
    warm = sizes[len(sizes) // 4]
    print(f"memory MiB  start {sizes[0]:.0f}, after a quarter {warm:.0f}, end {sizes[-1]:.0f}")
    complaints = lost(seen, count) + (["memory grew"] if sizes[-1] > MOST_GROWTH * warm else [])
    print("\n".join(complaints) or "nothing lost, nothing hung, memory flat")
    return bool(complaints)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=16, help="of a request, at most (%(default)s)")
    parser.add_argument("--max-waiting-streams", type=int, default=400, help="some 50 of these prompts")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
