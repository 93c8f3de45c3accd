"""The load generator: what it sends, measures and prints."""

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.harness import COMPLETE, DONE, STREAMED, URL, Json, answering, event, part, refusal
from tests.clients.openai_only import openai_server
from tests.server.harness import Running, Serve
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles_client import AsyncClient, RetryPolicy
from thoughtbubbles_client.bench.command import add_arguments, run
from thoughtbubbles_client.bench.load import put_load
from thoughtbubbles_client.bench.measure import Answered, Failed
from thoughtbubbles_client.bench.plan import Plan
from thoughtbubbles_client.bench.prompts import make_prompts
from thoughtbubbles_client.bench.report import Report, Spread

SHORT = ["--prompt-tokens", "7", "--completion-tokens", "5", "--concurrency", "3"]
Bench = Callable[..., int]


@pytest.fixture
def bench() -> Bench:
    """The command, with these arguments."""

    def command(*given: str) -> int:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return run(parser.parse_args(given))

    return command


def counter(server: Running, name: str) -> int:
    (value,) = re.findall(rf"^thoughtbubbles_{name} (\S+)$", server.client.get("/metrics").text, re.MULTILINE)
    return int(float(value))


def test_a_server_is_measured(server: Running, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total")
    before = [counter(server, name) for name in names]
    assert bench(server.url, *SHORT, "--requests", "8", "--seed", "1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    made = [counter(server, name) - start for name, start in zip(names, before, strict=True)]
    assert (told["answered"], told["errors"], told["prompt_tokens"], told["completion_tokens"]) == (8, {}, 56, 40)
    assert made == [7 * 9, 5 * 9], "one request more, which is not measured"
    assert told["requests_per_second"] == pytest.approx(8 / told["seconds"])
    assert told["tokens_per_second"] == pytest.approx(40 / told["seconds"])
    for name in ("time_to_first_token_seconds", "inter_token_seconds", "answer_seconds"):
        assert 0 <= told[name]["p50"] <= told[name]["p90"] <= told[name]["p99"] <= told["seconds"]
    assert told["plan"]["fork_ratio"] is None


def test_the_table(server: Running, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server.url, *SHORT, "--requests", "4", "--fork-ratio", "2") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{server.url}: 3 requests at once, prompts of 7 tokens, completions of 5 tokens\n")
    assert re.search(r"^4 answered and 0 failed in \d+\.\d s; 28 tokens read, 20 made$", told, re.MULTILINE)
    for name in ("time to first token", "inter-token time", "whole answer"):
        assert re.search(rf"^{name}( +\d+\.\d){{3}}$", told, re.MULTILINE)


def test_for_some_time(server: Running, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server.url, *SHORT, "--seconds", "0.2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answered"] >= 3
    assert told["seconds"] >= 0.2


@pytest.mark.parametrize("strict", [True, False])
def test_a_server_that_speaks_openais_part(bench: Bench, capsys: pytest.CaptureFixture[str], strict: bool) -> None:
    with openai_server(strict=strict) as url:
        assert bench(url, "--openai-only", "--model", "parrot", "--requests", "4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answered"], told["completion_tokens"], told["prompt_tokens"]) == (4, 12, 8)


def test_keys(serve: Serve, bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-right\nsk-old\n", encoding="utf-8-sig")
    with serve(api_keys=ApiKeys.of(["sk-right"], "here")) as server:
        assert bench(server.url, *SHORT, "--requests", "1", "--api-key-file", str(tmp_path / "key")) == 0
        with pytest.raises(OSError, match="401 invalid_api_key"):
            bench(server.url)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--concurrency", "0"], "concurrency must be above 0, not 0"),
        (["--seconds", "-1"], r"seconds must be above 0, not -1\.0"),
        (["--completion-tokens", "0"], "completion_tokens must be above 0, not 0"),
        (["--openai-only", "--fork-ratio", "2"], "fork_ratio is nothing that OpenAI's API has"),
        (["nowhere"], "url must be like http://127.0.0.1:8000, not 'nowhere'"),
        (["http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be measured: http://127.0.0.1:1/tokenize: "),
    ],
)
def test_what_cannot_be_measured(bench: Bench, given: list[str], reason: str) -> None:
    with pytest.raises((ValueError, OSError), match=reason):
        bench(*given)


def test_what_the_server_refuses_is_told_before_the_load(server: Running, bench: Bench) -> None:
    reason = "cannot be measured: 400 context_length_exceeded: This model's maximum context length is 64"
    with pytest.raises(OSError, match=reason):
        bench(server.url, "--prompt-tokens", "60")


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "thoughtbubbles_client.bench", "nowhere"]
    client = Path(__file__).parents[2] / "clients" / "python"
    ran = subprocess.run(command, cwd=client, check=False, capture_output=True, text=True)
    assert ran.returncode == 2
    assert re.fullmatch(r"python -m thoughtbubbles_client\.bench: error: url must be like .*\n", ran.stderr)


def test_either_a_number_or_a_time() -> None:
    with pytest.raises(ValueError, match="either requests or seconds"):
        Plan(requests=3, seconds=1)
    with pytest.raises(ValueError, match="either requests or seconds"):
        Plan(requests=None)


def loaded(plan: Plan, transport: httpx.AsyncBaseTransport) -> Report:
    async def load() -> Report:
        async with AsyncClient(URL, transport=transport, retry=RetryPolicy(retries=0), fork_counts=False) as client:
            return await put_load(client, plan)

    return asyncio.run(load())


def streamed(*texts: str, **usage: int) -> httpx.Response:
    """The answer to one request."""
    chunks = [event(part(text)) for text in texts]
    if usage:
        chunks.append(event(part("", choices=[], usage=usage)))
    return httpx.Response(200, headers=STREAMED, content=b"".join([*chunks, DONE]))


def test_errors_are_counted_by_kind() -> None:
    answers: list[httpx.Response | Exception] = [
        COMPLETE,
        streamed("a", "b"),
        refusal(429, code="queue_full"),
        httpx.ReadError("gone"),
        refusal(503),
        refusal(429, code="queue_full"),
        streamed("a", prompt_tokens=5, completion_tokens=4),
        httpx.Response(200, headers=STREAMED, content=event(part("a"))),
    ]
    report = loaded(Plan(openai_only=True, requests=7, concurrency=1), answering(*answers))
    assert (report.answered, report.prompt_tokens, report.completion_tokens) == (2, 5, 6)
    assert report.errors == {"queue_full": 2, "DisconnectedError": 2, "ServiceUnavailableError": 1}
    assert list(report.errors)[-1] == "ServiceUnavailableError"
    failures = "queue_full: 2 failed\nDisconnectedError: 2 failed\nServiceUnavailableError: 1 failed"
    assert report.as_text().endswith(failures)


def test_tokens_that_come_together() -> None:
    chunk = part("ab")
    chunk["choices"] = [{**chunk["choices"][0], "index": index, "token_ids": [1, 2]} for index in range(2)]
    answer = httpx.Response(200, headers=STREAMED, content=event(chunk) + event(part("")) + DONE)
    report = loaded(Plan(openai_only=True, requests=1, concurrency=1), answering(COMPLETE, answer))
    assert report.completion_tokens == 4
    assert report.inter_token_seconds == Spread(p50=0, p90=0, p99=0)


def test_no_answer_at_all(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    transport = answering(COMPLETE, *[refusal(429, code="queue_full")] * 2)
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda limits: transport)
    assert bench("--openai-only", "--requests", "2") == 1
    assert re.search(r"^time to first token( +–){3}$", capsys.readouterr().out, re.MULTILINE)


class Counting(httpx.MockTransport):
    """A server that answers once all requests of a load have arrived, and records them."""

    def __init__(self, together: int) -> None:
        self.bodies: list[Json] = []
        self._barrier = asyncio.Barrier(together)
        super().__init__(self._answer)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": list(range(100))})
        self.bodies.append(body)
        if not body.get("stream"):
            return httpx.Response(200, content=COMPLETE.content)
        async with asyncio.timeout(30):
            await self._barrier.wait()
        return streamed("a")


def test_so_many_at_once_and_each_unlike_the_others() -> None:
    transport = Counting(together=4)
    report = loaded(Plan(requests=12, concurrency=4, prompt_tokens=9, completion_tokens=3, fork_ratio=1.5), transport)
    assert report.answered == 12
    prompts = [tuple(body.pop("prompt")) for body in transport.bodies]
    assert {len(prompt) for prompt in prompts} == {9}
    assert len(set(prompts)) == 13
    seeds = [body.pop("seed") for body in transport.bodies]
    assert sorted(seeds) == list(range(-1, 12))
    asked = {
        "max_tokens": 3, "temperature": 1, "fork_ratio": 1.5, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    first, *others = transport.bodies
    assert first == asked
    for body in others:
        assert body == asked | {"stream": True, "stream_options": {"include_usage": True}}


def drawn(plan: Plan) -> list[Any]:
    """Three prompts."""

    async def draw() -> list[Any]:
        async with AsyncClient(URL, transport=Counting(together=1)) as client:
            prompt = await make_prompts(client, plan)
            return [prompt(number) for number in range(3)]

    return asyncio.run(draw())


def test_a_seed_makes_the_same_prompts() -> None:
    assert drawn(Plan(seed=1)) == drawn(Plan(seed=1))
    assert drawn(Plan(seed=1)) != drawn(Plan(seed=2))
    words = drawn(Plan(openai_only=True, prompt_tokens=5))
    assert [len(prompt.split(" ")) for prompt in words] == [5, 5, 5]


def test_spreads() -> None:
    assert Spread.of([]) is None
    assert Spread.of([3]) == Spread(p50=3, p90=3, p99=3)
    assert Spread.of([4, 2, 1, 3]) == Spread(p50=2, p90=4, p99=4)
    assert Spread.of([number / 8 for number in range(1000, 0, -1)]) == Spread(p50=500 / 8, p90=900 / 8, p99=990 / 8)


def test_a_report() -> None:
    outcomes: list[Answered | Failed] = [
        Answered(arrivals=[0.5, 0.75, 1.25], seconds=1.5, prompt_tokens=2, completion_tokens=3),
        Answered(arrivals=[], seconds=0.25, prompt_tokens=2, completion_tokens=0),
        Failed(kind="timeout"),
    ]
    report = Report.of(outcomes, 2)
    assert (report.answered, report.errors, report.requests_per_second, report.tokens_per_second) == (
        2, {"timeout": 1}, 1, 1.5,
    )  # fmt: skip
    assert report.time_to_first_token_seconds == Spread(p50=0.5, p90=0.5, p99=0.5)
    assert report.inter_token_seconds == Spread(p50=0.25, p90=0.5, p99=0.5)
    assert report.answer_seconds == Spread(p50=0.25, p90=1.5, p99=1.5)
