"""What a server does as it starts: its warning, and the interpreter's switch interval."""

import asyncio
import logging
import sys

import pytest

from tests.server.harness import MakeService
from thoughtbubbles.server.keys import NO_KEYS, ApiKeys
from thoughtbubbles.server.lifecycle import SWITCH_SECONDS, serve, warn_if_open, watch
from thoughtbubbles.server.other_process import run_other
from thoughtbubbles.server.sockets import listen

KEYS = ApiKeys.of(["sk-one"], "here")


@pytest.mark.parametrize(
    ("address", "keys", "warns"),
    [("0.0.0.0", NO_KEYS, True), ("::", NO_KEYS, True), ("192.168.1.5", NO_KEYS, True), ("fe80::1%eth0", NO_KEYS, True),
     ("127.0.0.1", NO_KEYS, False), ("127.0.0.2", NO_KEYS, False), ("::1", NO_KEYS, False), ("0.0.0.0", KEYS, False)],
)  # fmt: skip
def test_a_server_that_anybody_can_use_is_warned_of(
    address: str, keys: ApiKeys, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_if_open(address, keys)
    logged = [(record.levelno, address in record.message) for record in caplog.records]
    assert logged == [(logging.WARNING, True)] * warns


def test_the_warning_comes_at_the_start(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the address that is really listened on."""
    warned: list[tuple[str, ApiKeys]] = []
    monkeypatch.setattr("thoughtbubbles.server.lifecycle.warn_if_open", lambda *given: warned.append(given))
    monkeypatch.setattr("thoughtbubbles.server.lifecycle._serve", lambda *_: asyncio.sleep(0))
    service, _ = make_service(api_keys=KEYS)
    with listen("localhost", 0) as listener:
        asyncio.run(serve(service, lambda *_: asyncio.sleep(0), listener, run_other))
    assert warned == [("127.0.0.1", KEYS)]


def test_the_switch_interval_is_set_while_a_server_runs(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    async def note(*_: object) -> None:
        seen.append(sys.getswitchinterval())

    monkeypatch.setattr("thoughtbubbles.server.lifecycle._serve", note)
    service, _ = make_service()
    before = sys.getswitchinterval()
    with listen("localhost", 0) as listener:
        asyncio.run(serve(service, lambda *_: asyncio.sleep(0), listener, run_other))
    assert seen == [pytest.approx(SWITCH_SECONDS)]
    assert sys.getswitchinterval() == before


class EnoughError(Exception):
    """The watchdog has looked long enough."""


class Stepping:
    """A worker whose clock says that its step takes an hour. Each look at it finds the next step, unless it hangs."""

    step_seconds = 3600.0

    def __init__(self, *, hangs: bool) -> None:
        self.abandoned = False
        self._hangs = hangs
        self._looks = 0

    @property
    def step_began(self) -> float:
        self._looks += 1
        if self._looks == 100:
            raise EnoughError
        return 1.0 if self._hangs else float(self._looks)

    def abandon(self) -> None:
        self.abandoned = True


def test_a_server_that_was_suspended_is_not_one_whose_step_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z and `docker pause` for longer than `watchdog_seconds` ended a server with a request when it resumed."""
    monkeypatch.setattr("thoughtbubbles.server.lifecycle.WATCH_SECONDS", 0.001)
    worker = Stepping(hangs=False)
    with pytest.raises(EnoughError):
        asyncio.run(watch(worker, 0.01))  # type: ignore[arg-type]
    assert not worker.abandoned


def test_a_step_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thoughtbubbles.server.lifecycle.WATCH_SECONDS", 0.001)
    worker = Stepping(hangs=True)
    asyncio.run(watch(worker, 0.01))  # type: ignore[arg-type]
    assert worker.abandoned
