"""The abuse run distinguishes a server that passes a fault from one that fails."""

import asyncio
import random
from collections.abc import Iterator

import pytest

from benchmarks.server.abuse import http as abuse_http
from benchmarks.server.abuse.__main__ import FAULTS, abuse, attempt
from benchmarks.server.abuse.target import Target
from tests.server.conftest import (  # noqa: F401 (fixtures are found by their names here)
    make_engine,
    make_service,
    model,
    serve,
    tokenizer,
)
from tests.server.harness import Running, Serve


@pytest.fixture
def attacked(serve: Serve) -> Iterator[Running]:  # noqa: F811
    with serve() as running:
        running.client.close()
        yield running


def target(server: Running) -> Target:
    return Target(address=server.url, pid=0, slack=1, dice=random.Random(0))


def test_a_server_that_behaves_passes(
    attacked: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(abuse_http, "FUZZED", 150)
    names = ["fuzzed_fields", "malformed_http", "large_heads", "old_clients"]
    assert asyncio.run(abuse(target(attacked), names)) == []
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["pass"] * 4


def test_a_server_that_misbehaves_fails(attacked: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is wrong, one that does not come, and a request that is left behind."""
    monkeypatch.setattr(abuse_http, "DOCUMENTED", frozenset({200}))
    passed, observed = asyncio.run(attempt(FAULTS["fuzzed_fields"], target(attacked)))
    assert not passed
    assert "for /" in observed
    monkeypatch.setattr("benchmarks.server.abuse.__main__.LONGEST_SECONDS", 0.1)

    async def hang(_: Target) -> str:
        await asyncio.sleep(60)
        return ""

    assert asyncio.run(attempt(hang, target(attacked)))[0] is False

    async def lose_one(server: Target) -> str:
        attacked.service.metrics.meter._accepted += 1
        async with server.http() as http:
            await http.post("/v1/completions", json={"max_tokens": 1})
        return ""

    monkeypatch.setattr("benchmarks.server.abuse.__main__.LONGEST_SECONDS", 30)
    passed, observed = asyncio.run(attempt(lose_one, target(attacked)))
    assert (passed, "accepted" in observed) == (False, True)


def test_every_fault_is_bounded_and_says_what_it_is() -> None:
    assert len(FAULTS) == 15
    assert all(fault.__doc__ and asyncio.iscoroutinefunction(fault) for fault in FAULTS.values())
