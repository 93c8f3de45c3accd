"""What a server does as it starts: its warning, and the interpreter's switch interval."""

import asyncio
import logging
import sys

import pytest

from tests.server.harness import MakeService
from thoughtbubbles.server.keys import NO_KEYS, ApiKeys
from thoughtbubbles.server.lifecycle import SWITCH_SECONDS, serve, warn_if_open
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
