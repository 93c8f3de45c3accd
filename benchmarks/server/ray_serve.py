"""Processor time that Ray Serve spends between client and engine, by process, against the server alone.

    python -m benchmarks.server.ray_serve [--haproxy] [--clients 8] [--max-tokens 256] [--requests 200]

First come streams, for the time a token; then requests of one token that are not streamed, for the time a request.
Processor time says how many cores a fleet needs, and other work on the machine changes it little. Most of a replica's
and of the server's is the model's.
"""

import argparse
import asyncio
import os
import re
import subprocess
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from benchmarks.header import header
from benchmarks.server.clients import Load, Request, put_load, require_complete
from benchmarks.server.serving import serving

PROCESSES: Mapping[str, str] = {
    "proxy": "^ray::ProxyActor|^ray::HAProxyManager|/haproxy ",
    "ingress": "^ray::ServeReplica:thoughtbubbles:Ingress",
    "router's memory": "^ray::PrefixTreeActor",
    "replica": "^ray::ServeReplica:thoughtbubbles:Replica",
}
"""Patterns of process titles."""
ALONE: Mapping[str, str] = {"the server without it": ""}
ENVIRONMENT = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
CLOCK = "clock"
IDLE_SECONDS = 10.0
"""Seconds without requests, whose processor time is subtracted."""
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def main() -> None:
    """Print the table."""
    args = _arguments()
    print(header())
    print("                       ms a streamed token  ms a request of one token")
    options = ("--threads", "1")
    environment = ENVIRONMENT | (HAPROXY if args.haproxy else {})
    with serving(*options, module="deploy.ray_serve", environment=environment) as (address, session):
        _measure(address, session, PROCESSES, args)
    with serving(*options) as (address, session):
        _measure(address, session, ALONE, args)


def _measure(address: str, session: int, processes: Mapping[str, str], args: argparse.Namespace) -> None:
    """Print a row for each process."""

    def busy(work: Coroutine[Any, Any, None]) -> dict[str, float]:
        """Return the processor time of each process during `work`, and the wall-clock time."""
        before = _seconds(session, processes)
        asyncio.run(work)
        return {name: seconds - before[name] for name, seconds in _seconds(session, processes).items()}

    busy(_send(address, args.clients, 1, args.max_tokens))  # what happens once is not measured
    idle = busy(asyncio.sleep(IDLE_SECONDS))
    streams = busy(_send(address, args.clients, 1, args.max_tokens))
    each = -(-args.requests // args.clients)
    requests = busy(_send(address, args.clients, each, 1))
    for name in processes:
        token, request = (
            1000 * (spent[name] - idle[name] * spent[CLOCK] / idle[CLOCK]) / count
            for spent, count in ((streams, args.clients * args.max_tokens), (requests, args.clients * each))
        )
        print(f"{name:21}  {token:19.2f}  {request:25.1f}", flush=True)


async def _send(address: str, clients: int, requests: int, max_tokens: int) -> None:
    """Have each client send its requests one after the other; those of several tokens are streamed."""

    def request(client: int, number: int) -> Request:
        return Request(body={"prompt": f"{client * requests + number} rivers", "max_tokens": max_tokens,
                             "ignore_eos": True, "stream": max_tokens > 1})  # fmt: skip

    require_complete(await put_load(Load(address=address, request=request, clients=clients, requests=requests)))


def _seconds(session: int, processes: Mapping[str, str]) -> dict[str, float]:
    """Return the processor time of each process of a session so far, and the wall clock."""
    ps = ["ps", "-o", "pid=,args=", "-s", str(session)]
    listed = [line.split(maxsplit=1) for line in subprocess.check_output(ps, text=True).splitlines()]  # noqa: S603
    return {CLOCK: time.monotonic()} | {
        name: sum(_spent(int(pid)) for pid, *command in listed if re.search(title, "".join(command)))
        for name, title in processes.items()
    }


def _spent(pid: int) -> float:
    """Return user and system seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--haproxy", action="store_true", help="use Ray's HAProxy instead of its proxies, and its fast path"
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=200)
    return parser.parse_args()


if __name__ == "__main__":
    main()
