"""Faults of load: clients that leave, ask for too much, or keep the server busy while others wait."""

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
"""What /health may take, whatever others ask."""
NEXT_SECONDS = 1.0
"""What the next client's first token may take, once a client that asked for very much has left."""


async def disconnects(target: Target) -> str:
    """1,200 clients that leave at any moment, streamed or not, while the body is sent or the answer is made."""

    async def ask_and_leave(seconds: float, part: float, body: bytes) -> None:
        _, writer = await connect(target)
        writer.write(body[: int(len(body) * part)])
        await asyncio.sleep(seconds)
        await leave(writer)

    before = (await metrics(target))["request_accepted_total"]
    for _ in range(LEAVERS // 50):
        asked = [
            ask_and_leave(
                target.dice.uniform(0, 0.4),
                target.dice.choice((0.3, 0.9, 1, 1, 1)),
                completion(prompt="leaving " * target.dice.randint(1, 50), max_tokens=200, ignore_eos=True,
                           stream=target.dice.random() < 0.5, n=target.dice.choice((1, 1, 4))),
            )
            for _ in range(50)
        ]  # fmt: skip
        await asyncio.gather(*asked)
    accepted = (await metrics(target))["request_accepted_total"] - before
    return f"{LEAVERS} clients, {accepted:.0f} requests begun; none is left"


async def enormous_request(target: Target) -> str:
    """131,072 choices in 4 KB, and 1,024 prompts: refused, or gone with their client within a second."""
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
    """The longest that /health took while this was worked on, and how often it was asked."""
    reader, writer = await connect(target)
    worst, number, asked = 0.0, 0, request("GET", "/health")
    while not work.done():
        began = time.monotonic()
        writer.write(asked)
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
"""In a process of its own: what it does is not to slow the one that measures."""


async def long_work(target: Target) -> str:
    """The longest texts, most ids and most mistakes that a body can hold, to every route that reads one."""
    asked = [
        ("/tokenize", "{'prompt': 'ab ' * 349_000}"), ("/tokenize", "{'prompt': 'ab' * 524_000}"),
        ("/tokenize", "{'prompt': 'a' * 8_000_000}"), ("/tokenize", "{'prompt': {str(n): 1 for n in range(65_000)}}"),
        ("/detokenize", "{'tokens': [72] * 524_000}"), ("/detokenize", "{'tokens': ['a'] * 65_000}"),
        ("/detokenize", "{'tokens': [[]] * 2_000_000}"), ("/v1/completions", "{'prompt': [[1] * 500] * 1000}"),
        ("/v1/completions", "{'logit_bias': {str(n): 'a' for n in range(65_000)}}"),
        ("/v1/chat/completions", "{'messages': [{}] * 60_000}"),
    ]  # fmt: skip
    worst, number = 0.0, 0
    for path, body in asked:
        clients = [
            await asyncio.create_subprocess_exec("python3", "-c", LONG_WORK, target.address, path, body)
            for _ in range(2)
        ]
        work: asyncio.Task[object] = asyncio.ensure_future(asyncio.gather(*(each.wait() for each in clients)))  # type: ignore[assignment]
        took, times = await _worst_health(target, work)
        worst, number = max(worst, took), number + times
        assert took < HEALTH_SECONDS * target.slack, f"/health took {took:.3f} s beside {path} {body}"
    return f"/health took {worst:.3f} s at most, of {number} times"


async def full_queue(target: Target) -> str:
    """300 clients at once, each with a stream of 40 tokens: every one is answered, whole or with a refusal."""

    async def ask(http: httpx.AsyncClient) -> str:
        answer = await http.post("/v1/completions", json={"prompt": "The", "max_tokens": 40, "stream": True})
        if answer.status_code == httpx.codes.OK:
            assert answer.text.endswith("data: [DONE]\n\n")
            return "timed out" if '"code":"timeout"' in answer.text else "done"
        code: str = answer.json()["error"]["code"]
        return code

    limits = httpx.Limits(max_connections=140)
    async with httpx.AsyncClient(base_url=target.address, timeout=120 * target.slack, limits=limits) as http:
        seen = Counter(await asyncio.gather(*(ask(http) for _ in range(300))))
    assert set(seen) <= {"done", "timed out", "timeout", "queue_full", "client_queue_full"}, seen
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(seen.items()))


async def sigterm(target: Target) -> str:
    """SIGTERM in the middle of 16 streams: all come to their ends, and the process ends with 0."""

    async def stream() -> bytes:
        async with target.http() as http:
            body = {"prompt": "The river", "max_tokens": 200, "stream": True, "ignore_eos": True}
            return (await http.post("/v1/completions", json=body)).content

    streams = [asyncio.create_task(stream()) for _ in range(16)]
    while (await metrics(target))["num_requests_running"] < len(streams):
        assert not any(stream.done() for stream in streams), "too fast to be met in the middle"
        await asyncio.sleep(0.02)
    os.kill(target.pid, signal.SIGTERM)
    answers = await asyncio.gather(*streams)
    assert all(each.endswith(b"data: [DONE]\n\n") and b'"error"' not in each for each in answers), "a stream was cut"
    _, ended = await asyncio.to_thread(os.waitpid, target.pid, 0)
    assert os.waitstatus_to_exitcode(ended) == 0, f"it ended with {os.waitstatus_to_exitcode(ended)}"
    return "16 of 16 streams came to their ends; exit code 0"


FAULTS: Sequence[Fault] = (disconnects, enormous_request, long_work, full_queue, sigterm)
