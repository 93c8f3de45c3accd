"""Several servers at one address, with all processes in one session, and what becomes of their clients."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI, OpenAI

ROOT = Path(__file__).parents[2]
MODEL = "thoughtbubbles-11m"
BATCH = 4
CLIENTS = 4 * BATCH
"""Twice as many as two servers run at once."""
START_SECONDS = 300
"""On a machine that has much else to do."""
STORY = "Emma had not yet decided whether the river was to be crossed before the evening, and nobody asked her. "
LONG = {"max_tokens": 1000, "extra_body": {"ignore_eos": True}}


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what happens in other processes, without slowing them down: they are asked for their metrics."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.2)


@dataclass
class Fleet:
    """Servers behind one address."""

    process: subprocess.Popen[bytes]
    url: str
    http: httpx.Client
    openai: OpenAI

    def samples(self, name: str) -> dict[str, float]:
        """A metric of each server that lives, its labels added up."""
        raise NotImplementedError

    def processes(self, title: str) -> list[int]:
        """Ids of this fleet's processes whose title has this in it."""
        listed = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "-s", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout
        rows = (line.split(maxsplit=1) for line in listed.splitlines())
        return [int(pid) for pid, *command in rows if re.search(title, "".join(command))]

    def idle(self) -> bool:
        return not any((*self.samples("num_requests_running").values(), *self.samples("num_requests_waiting").values()))

    def full(self) -> bool:
        """Whether two servers run as many requests as they can."""
        return [*self.samples("num_requests_running").values()] == [BATCH] * 2


def free_port(others: int = 0) -> int:
    """A port that is free now, as are so many after it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        with suppress(OSError):
            for number in range(1, others + 1):
                socket.create_server(("127.0.0.1", port + number)).close()
            return port


@contextmanager
def running(
    kind: type[Fleet], module: str, *options: str, port: int, environment: Mapping[str, str], started: str = "/ready"
) -> Iterator[Fleet]:
    """Start a fleet, wait until it answers `started` with 200, and kill what is left of it at the end."""
    command = [sys.executable, "-m", module, "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    with (
        httpx.Client(base_url=url, timeout=60) as http,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai,
    ):
        fleet = kind(process, url, http, openai)
        try:
            eventually(lambda: process.poll() is not None or answers(http, started), START_SECONDS)
            yield fleet
        finally:
            for pid in fleet.processes(""):
                with suppress(ProcessLookupError):  # it may just have ended by itself
                    os.kill(pid, signal.SIGKILL)
            process.wait(10)


def answers(http: httpx.Client, path: str = "/ready") -> bool:
    try:
        return http.get(path).status_code == 200
    except httpx.HTTPError:
        return False


def check_leaving(fleet: Fleet, *, stream: bool) -> None:
    """A client leaves while its request runs: the request is freed, and ends once."""
    before = sum(fleet.samples("request_finished_total").values())
    body = json.dumps({"prompt": STORY, "max_tokens": 1000, "ignore_eos": True, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(fleet.url.rpartition(":")[2]))) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        eventually(lambda: sum(fleet.samples("num_requests_running").values()) == 1)
    eventually(fleet.idle)
    assert sum(fleet.samples("request_finished_total").values()) == before + 1


async def outcome(fleet: Fleet, number: int, *, stream: bool) -> str:
    """What OpenAI's client makes of one request; an exception that it does not map is ours, and fails the test."""
    asked = {"model": MODEL, "prompt": f"{number} {STORY}", "max_tokens": 300, "extra_body": {"ignore_eos": True}}
    try:
        async with AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            answer = await client.completions.create(**asked, stream=stream)
            chunks = [chunk async for chunk in answer] if stream else [answer]
    except APIStatusError as error:
        return f"status {error.status_code}, again after {error.response.headers['retry-after']} s"
    except (APIConnectionError, httpx.RemoteProtocolError):
        return "connection broken"
    except APIError as error:
        return f"event {error.code}"
    return f"done {chunks[-1].choices[0].finish_reason}"


async def outcomes(fleet: Fleet, clients: int, act: Callable[[], None]) -> Counter[str]:
    """What becomes of many requests, half of them streams, when both servers are full and then something happens."""
    asked = [asyncio.create_task(outcome(fleet, number, stream=number % 2 == 0)) for number in range(clients)]
    await asyncio.to_thread(eventually, fleet.full)
    act()
    return Counter(await asyncio.gather(*asked))
