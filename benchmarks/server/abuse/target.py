"""The attacked server: send bytes to it, and wait until it is idle again."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from benchmarks.server.serving import parse_metrics


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server on this machine."""

    address: str
    pid: int
    slack: float
    """Factor of every time limit."""
    dice: random.Random

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.address)
        assert parts.hostname == "127.0.0.1", "only a server on this machine is attacked"
        assert parts.port is not None
        return parts.hostname, parts.port

    def http(self) -> httpx.AsyncClient:
        """Return a client with a long timeout."""
        return httpx.AsyncClient(base_url=self.address, timeout=60 * self.slack)


Fault = Callable[[Target], Awaitable[str]]
"""Returns what was observed; raises if the server misbehaved."""


def request(method: str, path: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    """Return the bytes of a request."""
    lines = [f"{method} {path} HTTP/{version}", "host: abuse", *headers]
    lines += [f"content-length: {len(body)}"] if body or method == "POST" else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def completion(**body: object) -> bytes:
    """Return the bytes of a request for a completion."""
    return request("POST", "/v1/completions", json.dumps(body).encode())


async def connect(
    target: Target, *, receive_bytes: int | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection; with `receive_bytes`, one that buffers no more than that until it is read."""
    client = socket.socket()
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, target.endpoint)
    limit = 2 if receive_bytes is not None else 1 << 16  # asyncio reads on its own, up to twice this
    return await asyncio.open_connection(sock=client, limit=limit)


async def exchange(target: Target, sent: bytes, *, seconds: float = 30) -> bytes:
    """Send bytes on a new connection and return all that the server sends before it closes it."""
    reader, writer = await connect(target)
    try:
        async with asyncio.timeout(seconds * target.slack):
            writer.write(sent)
            return await reader.read()
    finally:
        await leave(writer)


async def leave(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once and drop unsent bytes."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


def status(answer: bytes) -> int:
    """Return the HTTP status of an answer."""
    assert answer.startswith(b"HTTP/1."), f"no answer but {answer[:40]!r}"
    return int(answer.split(b" ", 2)[1])


async def metrics(target: Target) -> Mapping[str, float]:
    """Return the server's metrics by name and labels."""
    async with target.http() as http:
        text = (await http.get("/metrics")).text
    return parse_metrics(text)


async def wait_until_idle(target: Target, seconds: float = 40) -> None:
    """Wait until no request and no connection is left; `AssertionError` after `seconds`, or if counts are wrong."""
    deadline = time.monotonic() + seconds * target.slack
    while True:
        found = await metrics(target)
        left = {name: found[name] for name in ("num_requests_running", "num_requests_waiting", "cache_streams")}
        left["http_connections"] = found["http_connections"] - 1  # this one
        if not any(left.values()):
            break
        assert time.monotonic() < deadline, f"not idle: {left}"
        await asyncio.sleep(0.2)
    finished = sum(value for name, value in found.items() if name.startswith("request_finished_total"))
    assert finished == found["request_accepted_total"], (
        f"{found['request_accepted_total']} accepted, {finished} finished"
    )
    async with target.http() as http:
        answer = await http.post("/v1/completions", json={"prompt": "The river", "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        assert (await http.get("/ready")).status_code == 200
