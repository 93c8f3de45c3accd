"""An engine that has been idle for a while checks the page counts of its cache, once, and reports them in metrics."""

import logging
import time
from collections.abc import Iterator

import pytest

from tests.server.harness import Running, eventually
from tests.server.test_operation import samples
from thoughtbubbles.server.bridge import loop


@pytest.fixture
def idle(server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """The server, which soon counts as idle."""
    monkeypatch.setattr(loop, "IDLE_SECONDS", 0.1)
    yield server
    monkeypatch.undo()
    server.complete(prompt="waits as usual again", max_tokens=1)


def counts(server: Running) -> tuple[float, float]:
    found = samples(server)
    return found["cache_integrity_checks_total",], found["cache_integrity_failures_total",]


def test_the_cache_is_checked_once_each_time(idle: Running) -> None:
    for _ in range(2):
        checks, failures = counts(idle)
        idle.complete(prompt="something to keep", max_tokens=3)
        eventually(lambda checks=checks: counts(idle)[0] > checks)  # type: ignore[misc]
        time.sleep(0.3)
        assert counts(idle) == (checks + 1, failures)


def test_wrong_counts_are_logged_and_the_server_goes_on(idle: Running, caplog: pytest.LogCaptureFixture) -> None:
    checks, failures = counts(idle)
    idle.complete(prompt="something to keep", max_tokens=3)
    eventually(lambda: counts(idle)[0] > checks)
    pages = idle.engine.cache.segments[0]
    pages.free -= 1
    try:
        with caplog.at_level(logging.ERROR):
            idle.complete(prompt="something else", max_tokens=3)
            eventually(lambda: counts(idle)[1] == failures + 1)
    finally:
        pages.free += 1
    assert "wrong page counts: segment 0: pages miscounted" in caplog.text
    idle.complete(prompt="and on", max_tokens=3)
    assert idle.service.worker.failure is None
