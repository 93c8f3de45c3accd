"""Many clients against a small queue for a while: nothing lost, nothing hung, one outcome each, memory flat.

    python -m benchmarks.server.load [--clients 200] [--seconds 60]

Every client asks again and again, streamed or not, and sometimes leaves in the middle. The table has what became of
their requests beside what the server counted; the command fails when the two do not add up, or when memory grew.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.header import header
from benchmarks.server.serving import serving

HUNG_SECONDS = 60.0
MOST_GROWTH = 1.1
"""Of memory, from a quarter of the time on, when every buffer has been made."""


@dataclass
class Load:
    """What clients have seen: each request adds to one outcome and no other."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """`done`, `refused` (429), `left` (by the client), or what went wrong."""
    seconds: list[float] = field(default_factory=list)
    """How long each `done` took."""

    @property
    def wrong(self) -> int:
        """Requests that had none of the outcomes that are meant."""
        return self.outcomes.total() - sum(self.outcomes[name] for name in ("done", "refused", "left"))


async def put_load(address: str, *, clients: int, seconds: float, requests: int, max_tokens: int) -> Load:
    """Clients that ask one after the other until the time is up, or each has asked `requests` times."""
    load, until = Load(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=HUNG_SECONDS, limits=limits) as http:

        async def ask_again(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(requests):
                if time.monotonic() > until:
                    return
                start = time.monotonic()
                outcome = await _ask(http, dice, max_tokens)
                load.outcomes[outcome] += 1
                if outcome == "done":
                    load.seconds.append(time.monotonic() - start)
                elif outcome == "refused":
                    await asyncio.sleep(dice.uniform(0.05, 0.2))  # sooner than told: the queue is to stay full

        await asyncio.gather(*map(ask_again, range(clients)))
    return load


async def _ask(http: httpx.AsyncClient, dice: random.Random, max_tokens: int) -> str:
    body = {"prompt": "river " * dice.randint(1, 4), "max_tokens": dice.randint(1, max_tokens), "ignore_eos": True,
            "stream": dice.random() < 0.5}  # fmt: skip
    try:
        async with asyncio.timeout(HUNG_SECONDS):
            if dice.random() < 0.1:
                return await _leave(http.base_url, body, dice.uniform(0, 0.3))
            response = await http.post("/v1/completions", json=body)
    except TimeoutError:
        return "hung"
    except httpx.HTTPError as error:
        return type(error).__name__
    if response.status_code != httpx.codes.OK:
        return "refused" if response.status_code == httpx.codes.TOO_MANY_REQUESTS else str(response.status_code)
    ended = response.text.endswith("data: [DONE]\n\n") if body["stream"] else response.json()["usage"]
    return "done" if ended and '"error"' not in response.text else "broken"


async def _leave(address: httpx.URL, body: Mapping[str, object], seconds: float) -> str:
    """Ask on a connection of its own, and close it after so long. An HTTP client, cancelled, may leave one open."""
    asked = json.dumps(body)
    head = ("POST /v1/completions HTTP/1.1", f"host: {address.netloc.decode()}", f"content-length: {len(asked)}")
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write("\r\n".join([*head, "", asked]).encode())
    await asyncio.sleep(seconds)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return "left"


def counted(address: str) -> dict[str, float]:
    """The server's own numbers of requests, by name and labels."""
    text = httpx.get(f"{address}/metrics").text
    found = re.findall(r"^thoughtbubbles_((?:request_|num_|cache_)[a-z_]+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def lost(load: Load, count: Mapping[str, float]) -> list[str]:
    """Everything that does not add up once the server is idle; nothing when all is well."""
    finished = {name: n for name, n in count.items() if name.startswith("request_finished_total")}
    ended = sum(n for name, n in finished.items() if "length" in name or "stop" in name)
    checks = {
        f"{load.wrong} requests went wrong": load.wrong == 0,
        "accepted is not finished": count["request_accepted_total"] == sum(finished.values()),
        "something still runs or waits": count["num_requests_running"] == count["num_requests_waiting"] == 0,
        "fewer ended than clients saw": load.outcomes["done"] <= ended <= load.outcomes["done"] + load.outcomes["left"],
        "refusals differ": count.get('request_rejected_total{reason="queue_full"}', 0) >= load.outcomes["refused"],
    }
    return [complaint for complaint, well in checks.items() if not well]


async def _watched(load: "asyncio.Task[Load]", pid: int) -> list[int]:
    sizes = []
    while not load.done():
        sizes.append(_resident_mib(pid))
        await asyncio.sleep(1)
    return sizes


def _resident_mib(pid: int) -> int:
    """Resident memory of a process."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) // 1024


async def _run(address: str, pid: int, args: argparse.Namespace) -> tuple[Load, list[int]]:
    asking = asyncio.create_task(
        put_load(address, clients=args.clients, seconds=args.seconds, requests=100_000, max_tokens=args.max_tokens)
    )
    sizes = await _watched(asking, pid)
    return await asking, sizes


def main() -> int:
    """Print the table; 1 when something does not add up."""
    args = _arguments()
    print(header())
    with serving("--max-waiting-streams", str(args.max_waiting_streams), "--max-client-share", "1") as (address, pid):
        load, sizes = asyncio.run(_run(address, pid, args))
        time.sleep(1)
        count = counted(address)
    print("outcome   requests")
    for outcome, number in sorted(load.outcomes.items()):
        print(f"{outcome:8}  {number:8}")
    times = sorted(load.seconds)
    print(f"done took  p50 {statistics.median(times):.2f} s, p99 {times[int(0.99 * len(times))]:.2f} s")
    for name, value in sorted(count.items()):
        if value and re.match("request_(accepted|finished|rejected)_total", name):
            print(f"{name} {value:.0f}")
    warm = sizes[len(sizes) // 4]
    print(f"memory MiB  start {sizes[0]}, after a quarter {warm}, end {sizes[-1]}")
    complaints = lost(load, count) + (["memory grew"] if sizes[-1] > MOST_GROWTH * warm else [])
    print("\n".join(complaints) or "nothing lost, nothing hung, memory flat")
    return bool(complaints)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=16, help="most that a request asks for")
    parser.add_argument("--max-waiting-streams", type=int, default=400, help="some 50 of these prompts")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
