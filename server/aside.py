"""Work that may take long leaves the event loop, so that it answers others meanwhile; short work does not."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

SHORT = 1 << 12
"""So many characters are worked on in less time than a thread takes to be woken, and to wake the loop again."""


async def aside(work: Callable[[], Result], size: int) -> Result:
    """What `work` returns or raises; on a thread of asyncio's own where it has more than `SHORT` characters to do."""
    return work() if size <= SHORT else await asyncio.to_thread(work)
