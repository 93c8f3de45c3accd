"""Freed memory goes back to the system, though what lives longer lies between."""

import ctypes
import re
from pathlib import Path

import pytest

from tests.server.harness import Serve, eventually
from thoughtbubbles.server.bridge.trimming import TRIM_SECONDS, Trimmer

STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", STATUS.read_text())[0]) * 1024


def test_a_heap_with_holes_is_returned() -> None:
    if not STATUS.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("only glibc keeps what is freed, and only Linux says how much")
    times = iter([0, TRIM_SECONDS])
    trimmer = Trimmer(clock=lambda: next(times))
    pieces = [b"x" * (100_000 + i) for i in range(1000)]  # below the size that glibc maps one by one
    full = resident_bytes()
    del pieces[::2]
    assert full - resident_bytes() < 10_000_000, "the holes went by themselves: this test shows nothing"
    trimmer.trim()
    assert full - resident_bytes() > 40_000_000


def test_it_is_done_now_and_then() -> None:
    trims: list[int] = []
    times = iter([0, 1, TRIM_SECONDS, TRIM_SECONDS + 1, 2 * TRIM_SECONDS])
    trimmer = Trimmer(trims.append, lambda: next(times))
    for _ in range(4):
        trimmer.trim()
    assert trims == [0, 0]


def test_a_server_trims_after_steps(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(Trimmer, "trim", lambda _self: trims.append(1))
    with serve() as server:
        server.complete(max_tokens=3)
        eventually(lambda: len(trims) >= 3)
