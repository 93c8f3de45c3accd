"""Prometheus itself scrapes a running server, and its own linter finds nothing in what it reads."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.harness import found, scraping
from tests.server.harness import Running, Serve, eventually

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool (Debian's package prometheus) are not installed",
)


@pytest.fixture(scope="module")
def used(serve: Serve) -> Iterator[Running]:
    """A server that has answered, refused, streamed to the end and been left."""
    with serve() as server:
        server.complete(prompt=["a", "bc"], n=2, max_tokens=5, fork_ratio=4)
        server.error(400, n=0)
        body = {"prompt": "stream", "max_tokens": 9, "stream": True, "logit_bias": {"65": 100}}
        assert server.client.post("/v1/completions", json=body).status_code == 200
        server.engine.hold(after=1)
        with server.client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
        # Only then: the engine could finish nine tokens before the server notices.
        eventually(lambda: "stream_disconnects_total 1.0" in server.client.get("/metrics").text)
        server.engine.let_go()
        eventually(lambda: 'finished_total{finish_reason="abort"} 1.0' in server.client.get("/metrics").text)
        yield server


def test_promtool_finds_nothing(used: Running) -> None:
    metrics = used.client.get("/metrics").content
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, check=False)
    assert (checked.stdout + checked.stderr).decode() == ""
    assert checked.returncode == 0


@pytest.fixture
def prometheus(used: Running, tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus whose one target is the server."""
    with scraping(used.url, tmp_path) as client:
        yield client


def value(prometheus: httpx.Client, query: str) -> float | None:
    """The latest value of a query with one answer; None while there is none."""
    series = found(prometheus, query)
    return float(series[0]["value"][1]) if series else None


def test_prometheus_scrapes_the_server(used: Running, prometheus: httpx.Client) -> None:
    eventually(lambda: value(prometheus, "up") == 1)
    (target,) = prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    tokens = used.engine.stats().generation_tokens_total
    assert tokens > 0
    eventually(lambda: value(prometheus, "thoughtbubbles_generation_tokens_total") == tokens)
    tokens += used.complete(prompt="more", max_tokens=7)["usage"]["completion_tokens"]
    eventually(lambda: value(prometheus, "thoughtbubbles_generation_tokens_total") == tokens)
    assert value(prometheus, 'thoughtbubbles_request_finished_total{finish_reason="abort"}') == 1
    assert value(prometheus, "thoughtbubbles_streams_per_token_sum") == used.engine.stats().stream_tokens_total
