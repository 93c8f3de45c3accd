"""Clients that stream completions and note when, spread over processes: what they cost is not the server's to wait for.

They read server-sent events from a bare socket, which each keeps. A client of convenience takes longer to read a token
than a small model takes to make it.
"""

import asyncio
import json
import random
import time
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

HANDING_OUT_SECONDS = 1.0
"""What clients' processes are given for taking their work, which comes from a process that will be busy serving."""
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""What follows the last event: the end of its HTTP chunk, and the empty one that ends the answer."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What clients ask."""

    address: str
    """Of the server."""
    clients: int
    """How many ask at a time."""
    requests: int
    """How often each asks, one after the other."""
    prompt_tokens: int
    vocabulary: int
    """Token ids of prompts are below it, end-of-text not among them."""
    max_tokens: int
    """Tokens of each answer, no more and no fewer; on average where clients ask apart."""
    apart: bool
    """Whether answers differ in length, by up to a half, so that clients do not ask all at once."""
    seed: str
    """Other prompts for each."""
    begin: float = 0.0
    """When the first ask, in seconds on the clock that all processes share: by then every process has its clients."""

    def prompt(self, client: int, request: int) -> list[int]:
        """Random token ids."""
        return random.Random(f"{self.seed}/{client}/{request}").choices(range(self.vocabulary), k=self.prompt_tokens)

    def tokens(self, client: int, request: int) -> int:
        """How many the answer has: the same with any seed."""
        half = self.max_tokens // 2 if self.apart else 0
        return self.max_tokens + random.Random(f"{client}/{request}").randint(-half, half)


@dataclass(frozen=True)
class Stream:
    """When one request was sent and its chunks came, in seconds on the clock that all processes share."""

    asked: float
    arrivals: list[float]
    tokens: int

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.asked

    @property
    def inter_token(self) -> float:
        """Mean seconds from a token to the next."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)


def put_load(load: Load, processes: Executor, number: int) -> list[Stream]:
    """Every request's stream, of clients divided among `number` processes, which all begin at once."""
    load = replace(load, begin=time.monotonic() + HANDING_OUT_SECONDS)
    shares = [range(start, load.clients, number) for start in range(min(number, load.clients))]
    return [stream for told in processes.map(_share, [load] * len(shares), shares) for stream in told]


def _share(load: Load, clients: range) -> list[Stream]:
    return asyncio.run(_together(load, clients))


async def _together(load: Load, clients: range) -> list[Stream]:
    await asyncio.sleep(load.begin - time.monotonic())
    told = await asyncio.gather(*(_client(load, client) for client in clients))
    return [stream for streams in told for stream in streams]


async def _client(load: Load, client: int) -> list[Stream]:
    """One connection for all its requests, as clients keep it."""
    at = urlsplit(load.address)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    streams = []
    for request in range(load.requests):
        tokens = load.tokens(client, request)
        asked = {"prompt": load.prompt(client, request), "max_tokens": tokens, "ignore_eos": True, "stream": True,
                 "stream_options": {"include_usage": True}}  # fmt: skip
        body = json.dumps(asked)
        head = ("POST /v1/completions HTTP/1.1", f"host: {at.netloc}", f"content-length: {len(body)}")
        start = time.monotonic()
        writer.write("\r\n".join([*head, "", body]).encode())
        arrivals, usage = await _arrivals(reader)
        assert usage["completion_tokens"] == tokens, f"not {tokens} tokens: {usage}"
        streams.append(Stream(start, arrivals, tokens))
    writer.close()
    return streams


async def _arrivals(reader: asyncio.StreamReader) -> tuple[list[float], dict[str, int]]:
    """When each chunk of one answer came that tells tokens, and the usage that its last chunk tells."""
    arrivals, last, rest = [], b"", b""
    while rest != LAST_CHUNK:
        some = await reader.read(1 << 16)
        assert some, "the server closed the connection"
        now = time.monotonic()
        *lines, rest = (rest + some).split(b"\n\n")  # events: between them stand the lengths of HTTP's own chunks
        told = [line for line in lines if b"data: {" in line]
        arrivals += [now] * len(told)
        last = told[-1] if told else last
    return arrivals[:-1], json.loads(last[last.index(b"{") :])["usage"]
