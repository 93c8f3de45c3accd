"""Faults of HTTP: wrong fields, bytes, headers and bodies, and clients that do not read."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.server.abuse.target import Fault, Target, completion, connect, exchange, leave, metrics, request, status

FUZZED = 5400
DOCUMENTED = frozenset({200, 400, 404, 408, 413, 429, 499, 503})
VALUES: Sequence[Any] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63) - 1, 10**4000, 0.5, 1e308, -0.0, "", "a", "\x00", "\ud83e",
    "🫧" * 99, "9" * 5000, [], [[]], [None], [1, "a"], ["a"] * 70, [[1], [2.5]], {}, {"a": 1}, {"1": 1e9}, {"": None},
    [[[[[1]]]]], {"type": "text", "text": "a"}, [{"role": "user", "content": "a"}], "causal", "dynamic",
)  # fmt: skip


def _error(answer: bytes) -> str:
    """Return the error code of an answer, after checking its form."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head, f"no id in {head!r}"
    assert b"content-type: application/json" in head, f"no JSON: {head!r}"
    code: str = json.loads(body)["error"]["code"]
    return code


async def fuzzed_fields(target: Target) -> str:
    """Bodies with wrong, huge and odd values in known and unknown fields: no answer is a 5xx."""
    seen: Counter[int] = Counter()
    async with target.http() as http:
        schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
        bodies = {
            "/v1/completions": ("CompletionRequest", {"max_tokens": 1}),
            "/v1/chat/completions": ("ChatRequest", {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}),
            "/tokenize": ("TokenizeRequest", {"prompt": "a"}),
            "/detokenize": ("DetokenizeRequest", {"tokens": [1]}),
        }
        for _ in range(FUZZED):
            path = target.dice.choice(sorted(bodies))
            schema, least = bodies[path]
            names = [*schemas[schema]["properties"], "unknown"]
            chosen = {target.dice.choice(names): target.dice.choice(VALUES) for _ in range(target.dice.randint(1, 3))}
            answer = await http.post(path, content=json.dumps({**least, **chosen}))
            seen[answer.status_code] += 1
            assert answer.status_code in DOCUMENTED, f"{answer.status_code} for {path} {chosen!r:.200}"
            assert "x-request-id" in answer.headers
            if answer.status_code != 200:
                assert len(answer.json()["error"]["message"]) <= 600, f"a long message for {path} {chosen!r:.200}"
    return ", ".join(f"{number} × {code}" for code, number in sorted(seen.items()))


async def malformed_http(target: Target) -> str:
    """Bytes that are not an HTTP request: 400 as JSON with a request id, or a closed connection."""
    sent = [b"\x16\x03\x01\x02\x00\x01", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n",
            b"\r\n\r\n \x00\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"POST /tokenize HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"]  # fmt: skip
    sent += [target.dice.randbytes(target.dice.randint(4, 2000)) + b"\r\n\r\n" for _ in range(200)]
    codes = [_error(answer) for each in sent if (answer := await exchange(target, each))]
    assert set(codes) <= {"invalid_http", "headers_too_large"}, codes
    assert len(codes) > len(sent) / 2
    return f"{len(codes)} of {len(sent)} were answered, all as JSON"


async def large_heads(target: Target) -> str:
    """Headers of 100 KB, in one header, in many or in the path: 431. Headers of 60 KB are served."""
    whole, many = [f"x: {'y' * 100_000}"], [f"x-{number}: {'y' * 90}" for number in range(1000)]
    heads = [("/health", whole), ("/health", many), ("/" + "a" * 100_000, [])]
    codes = [_error(await exchange(target, request("GET", path, b"", *lines))) for path, lines in heads]
    assert codes == ["headers_too_large"] * 3, codes
    small = await exchange(target, request("GET", "/health", b"", f"x: {'y' * 60_000}", "connection: close"))
    assert status(small) == 200
    return "3 of 3 refused"


async def oversized_posts(target: Target) -> str:
    """Bodies of 24 MB, sent whole before the answer is read: 413 every time, no reset."""
    codes = []
    for _ in range(12):
        sent = request("POST", "/v1/completions", b" " * 24_000_000, "connection: close")
        codes.append(_error(await exchange(target, sent)))
    assert codes == ["request_too_large"] * 12, codes
    return "12 of 12 were answered with 413"


async def old_clients(target: Target) -> str:
    """HTTP/1.0: a stream without chunks; HEAD: the headers of GET."""
    body = json.dumps({"prompt": "The river", "max_tokens": 5, "stream": True}).encode()
    answer = await exchange(target, request("POST", "/v1/completions", body, version="1.0"))
    head, _, events = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower(), head
    assert events.startswith(b"data: {"), events[:40]
    assert events.endswith(b"data: [DONE]\n\n")
    for path in ("/", "/health", "/ready", "/metrics"):
        answer = await exchange(target, request("HEAD", path, b"", "connection: close"))
        assert status(answer) == 200, path
        assert answer.endswith(b"\r\n\r\n"), f"HEAD {path} has a body"
    return "no chunks, no bodies"


async def _closed_within(target: Target, clients: Sequence[asyncio.StreamReader], seconds: float) -> float:
    """Wait until the server has closed these connections; return the seconds. `AssertionError` after `seconds`."""
    began = time.monotonic()
    while (left := (await metrics(target))["http_connections"] - 1) > 0:
        assert time.monotonic() < began + seconds * target.slack, f"{left:.0f} of {len(clients)} are still open"
        await asyncio.sleep(0.2)
    return time.monotonic() - began


async def dripped_bodies(target: Target) -> str:
    """100 bodies sent a byte every half second, to known and unknown paths: all are closed at their time limit."""
    paths = ["/v1/completions", "/nowhere", "/health", "/tokenize", "/v1/completions/x/cancel"]
    clients = [await connect(target) for _ in range(100)]

    async def drip(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(f"POST {paths[number % 5]} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n".encode())
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.5)

    dripping = [asyncio.create_task(drip(number, writer)) for number, (_, writer) in enumerate(clients)]
    try:
        seconds = await _closed_within(target, [reader for reader, _ in clients], 12)
    finally:
        for task in dripping:
            task.cancel()
        await asyncio.gather(*dripping, return_exceptions=True)
        for _, writer in clients:
            await leave(writer)
    return f"100 of 100 were closed within {seconds:.1f} s; the limit is 4 s, and 2 s to read the answer"


async def dripped_heads(target: Target) -> str:
    """100 connections whose headers never end or never begin: closed at the time limit."""
    clients = [await connect(target) for _ in range(100)]
    for number, (_, writer) in enumerate(clients):
        writer.write((b"", b"GET /health HTTP/1.1\r\nhost", b"POST")[number % 3])
    seconds = await _closed_within(target, [reader for reader, _ in clients], 10)
    for _, writer in clients:
        await leave(writer)
    return f"100 of 100 were closed within {seconds:.1f} s; the limit is 4 s"


async def slow_readers(target: Target) -> str:
    """60 clients that request long streams and pages and never read: disconnected, and their requests end."""
    clients = [await connect(target, receive_bytes=2048) for _ in range(60)]
    for number, (_, writer) in enumerate(clients):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        stream = completion(prompt=[1] * 200, max_tokens=800, stream=True, logprobs=20, echo=True, ignore_eos=True)
        writer.write(stream if number % 2 else request("GET", "/openapi.json") * 300)
    try:
        seconds = await _closed_within(target, [reader for reader, _ in clients], 100)
    finally:
        for _, writer in clients:
            await leave(writer)
    counted = (await metrics(target)).get('http_connections_closed_total{reason="write_timeout"}', 0)
    assert counted >= 30, f"{counted} counted"
    return f"60 of 60 were disconnected within {seconds:.1f} s, {counted:.0f} of them after 5 s without a byte read"


async def connection_flood(target: Target) -> str:
    """400 idle connections with a limit of 150: /health is always answered, and all requests once they are closed."""
    clients = [await connect(target) for _ in range(160)]
    answer = await exchange(target, request("GET", "/health", b"", "connection: close"))
    assert status(answer) == 200, "/health above the limit"
    refused = _error(await exchange(target, completion(prompt="a", max_tokens=1)))
    assert refused == "too_many_connections", refused
    clients += [await connect(target) for _ in range(240)]
    await asyncio.sleep(0.5)
    for _, writer in clients:
        await leave(writer)
    counted = (await metrics(target)).get('http_connections_closed_total{reason="limit"}', 0)
    assert counted >= 100, f"{counted} counted"
    return f"{counted:.0f} were closed at once, the others refused with the reason"


FAULTS: Sequence[Fault] = (
    fuzzed_fields, malformed_http, large_heads, oversized_posts, old_clients, dripped_heads, dripped_bodies,
    slow_readers, connection_flood,
)  # fmt: skip
