"""Faults of load: clients that disconnect, request too much, or keep the server busy while others wait."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import httpx

from benchmarks.server.abuse.target import Fault, Target, completion, connect, leave, metrics, request, status

LEAVERS = 1200
HEALTH_SECONDS = 0.1
"""Limit of /health, whatever else the server does."""
NEXT_SECONDS = 1.0
"""Limit of the next client's answer, once a client with an enormous request has disconnected."""


async def disconnects(target: Target) -> str:
    """1,200 clients that disconnect at random, streamed or not, while they send the body or await the answer."""

    async def send_and_leave(seconds: float, part: float, body: bytes) -> None:
        _, writer = await connect(target)
        writer.write(body[: int(len(body) * part)])
        await asyncio.sleep(seconds)
        await leave(writer)

    before = (await metrics(target))["request_accepted_total"]
    for _ in range(LEAVERS // 50):
        sending = [
            send_and_leave(
                target.dice.uniform(0, 0.4),
                target.dice.choice((0.3, 0.9, 1, 1, 1)),
                completion(prompt="leaving " * target.dice.randint(1, 50), max_tokens=200, ignore_eos=True,
                           stream=target.dice.random() < 0.5, n=target.dice.choice((1, 1, 4))),
            )
            for _ in range(50)
        ]  # fmt: skip
        await asyncio.gather(*sending)
    accepted = (await metrics(target))["request_accepted_total"] - before
    return f"{LEAVERS} clients, {accepted:.0f} requests accepted; none remains"


async def enormous_request(target: Target) -> str:
    """131,072 choices in 4 KB, and 1,024 prompts: refused, or aborted within a second after a disconnect."""
    statuses, longest = Counter[str](), 0.0
    for prompts, n in ((1024, 128), (1024, 1), (1, 128)):
        reader, writer = await connect(target)
        writer.write(completion(prompt=[[1]] * prompts, n=n, max_tokens=1, stream=True))
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * target.slack):
                statuses[str(status(await reader.readuntil(b"\r\n\r\n")))] += 1
        await leave(writer)
        began = time.monotonic()
        async with target.http() as http:
            answer = await http.post("/v1/completions", json={"prompt": "next", "max_tokens": 1})
        longest = max(longest, time.monotonic() - began)
        assert answer.status_code == httpx.codes.OK, answer.text
        assert longest < NEXT_SECONDS * target.slack, f"the next client waited {longest:.1f} s behind {prompts} × {n}"
    return f"answered {dict(statuses)}; the next client waited {longest:.2f} s at most"


async def _worst_health(target: Target, work: "asyncio.Task[object]") -> tuple[float, int]:
    """Return the longest time of /health while `work` runs, and the number of requests to it."""
    reader, writer = await connect(target)
    worst, number, probe = 0.0, 0, request("GET", "/health")
    while not work.done():
        began = time.monotonic()
        writer.write(probe)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(b'{"status":"ok"}'))
        assert status(head) == httpx.codes.OK
        worst, number = max(worst, time.monotonic() - began), number + 1
        await asyncio.sleep(0.005)
    await leave(writer)
    return worst, number


LONG_WORK = """
import json, sys, urllib.error, urllib.request
address, path, body = sys.argv[1], sys.argv[2], eval(sys.argv[3])
for _ in range(3):
    try:
        urllib.request.urlopen(address + path, json.dumps(body).encode(), timeout=120).read()
    except urllib.error.HTTPError as error:
        error.read()
"""
"""A client in a process of its own, so that it does not slow down the process that measures."""


async def long_work(target: Target) -> str:
    """The longest texts, most ids and most mistakes that fit a body, to every route with a body: /health stays fast."""
    bodies = [
        ("/tokenize", "{'prompt': 'ab ' * 349_000}"), ("/tokenize", "{'prompt': 'ab' * 524_000}"),
        ("/tokenize", "{'prompt': 'a' * 8_000_000}"), ("/tokenize", "{'prompt': {str(n): 1 for n in range(65_000)}}"),
        ("/detokenize", "{'tokens': [72] * 524_000}"), ("/detokenize", "{'tokens': ['a'] * 65_000}"),
        ("/detokenize", "{'tokens': [[]] * 2_000_000}"), ("/v1/completions", "{'prompt': [[1] * 500] * 1000}"),
        ("/v1/completions", "{'logit_bias': {str(n): 'a' for n in range(65_000)}}"),
        ("/v1/chat/completions", "{'messages': [{}] * 60_000}"),
    ]  # fmt: skip
    worst, number = 0.0, 0
    for path, body in bodies:
        clients = [
            await asyncio.create_subprocess_exec("python3", "-c", LONG_WORK, target.address, path, body)
            for _ in range(2)
        ]
        work: asyncio.Task[object] = asyncio.ensure_future(asyncio.gather(*(each.wait() for each in clients)))  # type: ignore[assignment]
        took, times = await _worst_health(target, work)
        worst, number = max(worst, took), number + times
        assert took < HEALTH_SECONDS * target.slack, f"/health took {took:.3f} s during {path} {body}"
    return f"/health took {worst:.3f} s at most, in {number} requests"


async def full_queue(target: Target) -> str:
    """300 clients at once, each with a stream of 40 tokens: each gets a complete answer or a refusal."""

    async def send(http: httpx.AsyncClient) -> str:
        answer = await http.post("/v1/completions", json={"prompt": "The", "max_tokens": 40, "stream": True})
        if answer.status_code == httpx.codes.OK:
            assert answer.text.endswith("data: [DONE]\n\n")
            return "timed out" if '"code":"timeout"' in answer.text else "done"
        code: str = answer.json()["error"]["code"]
        return code

    limits = httpx.Limits(max_connections=140)
    async with httpx.AsyncClient(base_url=target.address, timeout=120 * target.slack, limits=limits) as http:
        seen = Counter(await asyncio.gather(*(send(http) for _ in range(300))))
    assert set(seen) <= {"done", "timed out", "timeout", "queue_full", "client_queue_full"}, seen
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(seen.items()))


async def sigterm(target: Target) -> str:
    """SIGTERM in the middle of 16 streams: all are completed, and the process exits with 0."""

    async def stream() -> bytes:
        async with target.http() as http:
            body = {"prompt": "The river", "max_tokens": 200, "stream": True, "ignore_eos": True}
            return (await http.post("/v1/completions", json=body)).content

    streams = [asyncio.create_task(stream()) for _ in range(16)]
    while (await metrics(target))["num_requests_running"] < len(streams):
        assert not any(stream.done() for stream in streams), "a stream ended before SIGTERM"
        await asyncio.sleep(0.02)
    os.kill(target.pid, signal.SIGTERM)
    answers = await asyncio.gather(*streams)
    assert all(each.endswith(b"data: [DONE]\n\n") and b'"error"' not in each for each in answers), "a stream was cut"
    _, ended = await asyncio.to_thread(os.waitpid, target.pid, 0)
    assert os.waitstatus_to_exitcode(ended) == 0, f"exit code {os.waitstatus_to_exitcode(ended)}"
    return "16 of 16 streams were completed; exit code 0"


FAULTS: Sequence[Fault] = (disconnects, enormous_request, long_work, full_queue, sigterm)
