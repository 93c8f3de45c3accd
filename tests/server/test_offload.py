"""Which work leaves the event loop, and that nothing else differs."""

import asyncio
import threading

import pytest

from thoughtbubbles.server.http.offload import INLINE_LENGTH, offload


@pytest.mark.parametrize(("size", "stays"), [(0, True), (INLINE_LENGTH, True), (INLINE_LENGTH + 1, False)])
def test_only_long_work_leaves_the_loops_thread(size: int, stays: bool) -> None:
    worked_on = asyncio.run(offload(threading.get_ident, size))
    assert (worked_on == threading.get_ident()) == stays


@pytest.mark.parametrize("size", [INLINE_LENGTH, INLINE_LENGTH + 1])
def test_what_goes_wrong_is_raised_as_it_is(size: int) -> None:
    def fail() -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        asyncio.run(offload(fail, size))
