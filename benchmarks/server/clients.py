"""Clients of a server: what they send and when, and each answer with the times of its events.

They read from bare sockets. An HTTP client for Python takes longer to read a token than a small model takes to make it.
"""

import asyncio
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

HUNG_SECONDS = 600.0
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""What follows the last event: the end of its HTTP chunk, and the empty chunk that ends the answer."""
RETRY_SECONDS = (0.05, 0.2)
"""Bounds of a refused client's wait before its next request: less than Retry-After, so that the queue stays full."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request to send."""

    body: Mapping[str, Any] | None
    """JSON of a POST; None for a GET."""
    path: str = "/v1/completions"
    kind: str = ""
    """A name for outcomes of such requests."""
    leave_after: float | None = None
    """Seconds after which the client closes its connection; None: it reads the answer to its end."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a request. Times are seconds on the clock that all processes share."""

    kind: str = ""
    outcome: str
    """HTTP status of a complete answer, `left`, `broken`, `hung`, or the name of an exception."""
    sent: float
    arrivals: Sequence[float] = ()
    """When each event with tokens came; of an answer that is not streamed, when it came."""
    tokens: int = 0
    """Tokens of the completion, where the answer says so."""

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.sent

    @property
    def inter_token(self) -> float:
        """Mean seconds from a token to the next."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests to a server: `clients` at a time, or with `rate` at random moments."""

    address: str
    request: Callable[[int, int], Request]
    """Return the request of a client, by the client's number and its own among the client's."""
    clients: int = 0
    """Clients that each send one request after the other on one connection."""
    requests: int | None = None
    """Requests of each client; None: until the time is up."""
    rate: float | None = None
    """New clients a second, at random moments, with one request each; in place of `clients`."""
    seconds: float = float("inf")
    """No request is sent later than this."""
    begin: float = field(default_factory=time.monotonic)
    """When the first are sent, and from when `seconds` count."""
    seed: int = 0
    """Of the random moments."""


async def put_load(load: Load, clients: Iterable[int] | None = None) -> list[Answer]:
    """Send the requests, of these clients alone if they are given; return the answers."""
    await asyncio.sleep(load.begin - time.monotonic())
    if load.rate is not None:
        return await _arrive(load, load.rate)
    numbers = range(load.clients) if clients is None else clients
    answers = await asyncio.gather(*(_client(load, number) for number in numbers))
    return list(itertools.chain.from_iterable(answers))


def outcomes(answers: Iterable[Answer]) -> Counter[str]:
    """Return how many answers of each kind had each outcome."""
    return Counter(f"{each.kind} {each.outcome}".strip() for each in answers)


def require_complete(answers: Iterable[Answer]) -> None:
    """Raise `AssertionError` with the outcomes unless every answer is complete and has status 200."""
    answers = list(answers)
    assert all(each.outcome == "200" for each in answers), outcomes(answers)


async def _arrive(load: Load, rate: float) -> list[Answer]:
    """Start a client for each random moment and return their answers."""
    dice, until = random.Random(load.seed), load.begin + load.seconds
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number in itertools.count():
            await asyncio.sleep(dice.expovariate(rate))
            if time.monotonic() > until:
                break
            tasks.append(group.create_task(_client(load, number, one=True)))
    return [answer for task in tasks for answer in task.result()]


async def _client(load: Load, number: int, *, one: bool = False) -> list[Answer]:
    """Send a client's requests on one connection, opened again where the server or the client has closed it."""
    answers, connection = list[Answer](), None
    for which in range(1) if one else itertools.count():
        if which == load.requests or time.monotonic() > load.begin + load.seconds:
            break
        request = load.request(number, which)
        connection = connection or await _connect(load.address)
        answer, stays = await _exchange(connection, request, load.address)
        answers.append(answer)
        if not stays:
            await _close(connection)
            connection = None
        if answer.outcome == "429":
            await asyncio.sleep(random.Random(f"{number}/{which}").uniform(*RETRY_SECONDS))
    await _close(connection)
    return answers


async def _connect(address: str) -> Connection | None:
    at = urlsplit(address)
    with suppress(OSError):
        return await asyncio.open_connection(at.hostname, at.port)
    return None


async def _close(connection: Connection | None) -> None:
    if connection is not None:
        connection[1].close()
        with suppress(OSError):
            await connection[1].wait_closed()


async def _exchange(connection: Connection | None, request: Request, address: str) -> tuple[Answer, bool]:
    """Send a request and read its answer; return it, and whether the connection stays open."""
    body = b"" if request.body is None else json.dumps(request.body).encode()
    method = "GET" if request.body is None else "POST"
    head = (f"{method} {request.path} HTTP/1.1", f"host: {urlsplit(address).netloc}",
            "content-type: application/json", f"content-length: {len(body)}")  # fmt: skip
    sent = time.monotonic()

    def ended(outcome: str) -> tuple[Answer, bool]:
        return Answer(kind=request.kind, outcome=outcome, sent=sent), False

    if connection is None:
        return ended("ConnectionRefusedError")
    reader, writer = connection
    try:
        async with asyncio.timeout(HUNG_SECONDS if request.leave_after is None else request.leave_after):
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            return await _read(reader, request, sent)
    except TimeoutError:
        return ended("hung" if request.leave_after is None else "left")
    except (OSError, EOFError) as error:
        return ended(type(error).__name__)


async def _read(reader: asyncio.StreamReader, request: Request, sent: float) -> tuple[Answer, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status, stays = head.split(b" ", 2)[1].decode(), b"connection: close" not in head
    length = re.search(rb"content-length: (\d+)", head)
    if length is None:
        arrivals, last, complete = await _read_events(reader)
        usage = json.loads(last[last.index(b"{") :]).get("usage") if last else None
        arrivals = arrivals[:-1] if usage else arrivals  # the last event has the usage and no token
    else:
        content = await reader.readexactly(int(length[1]))
        arrivals, complete = [time.monotonic()], True
        usage = json.loads(content).get("usage") if content.startswith(b"{") else None
    answer = Answer(kind=request.kind, outcome=status if complete else "broken", sent=sent, arrivals=arrivals,
                    tokens=(usage or {}).get("completion_tokens", 0))  # fmt: skip
    return answer, stays


async def _read_events(reader: asyncio.StreamReader) -> tuple[list[float], bytes, bool]:
    """Return when each event with data came, the last of them, and whether the stream ended without an error."""
    arrivals, last, rest, done, failed = list[float](), b"", b"", False, False
    while rest != LAST_CHUNK:
        some = await reader.read(1 << 16)
        if not some:
            raise ConnectionResetError("the server closed the connection")
        now = time.monotonic()
        *events, rest = (rest + some).split(b"\n\n")  # between events stand the lengths of HTTP's own chunks
        data = [event for event in events if b"data: {" in event]
        arrivals += [now] * len(data)
        last = data[-1] if data else last
        failed |= any(b'"error"' in event for event in data)
        done |= any(event.endswith(b"data: [DONE]") for event in events)
    return arrivals, last, done and not failed
