"""Work that may take long leaves the event loop, so that it answers others meanwhile; short work does not."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

SHORT = 1 << 12
"""So many characters are worked on in less time than a thread takes to be woken, and to wake the loop again."""

# One thread each: Python runs one thread at a time, and the event loop waits for its turn behind each that wants one.
REQUESTS = ThreadPoolExecutor(1, thread_name_prefix="requests")
"""Where requests for text are read."""
TOKENS = ThreadPoolExecutor(1, thread_name_prefix="tokens")
"""Where text becomes token ids and back for clients who want nothing else; requests for text do not wait for them."""


async def aside(work: Callable[[], Result], size: int, lane: Executor = REQUESTS) -> Result:
    """What `work` returns or raises; on the thread of `lane` where it has more than `SHORT` characters to do."""
    return work() if size <= SHORT else await asyncio.get_running_loop().run_in_executor(lane, work)
