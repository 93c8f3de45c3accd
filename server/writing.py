"""Where long answers become JSON: not on the event loop, and one at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Written = TypeVar("Written")

# While they are written, a prompt's log-probabilities take 320 bytes each, of Python's objects. Python runs one thread
# at a time, so more lanes would take more memory and no less time, and keep short requests out of asyncio's own.
_lane = ThreadPoolExecutor(1, thread_name_prefix="writer")


async def write_alone(write: Callable[[], Written]) -> Written:
    """What `write` returns, when all that came before it has been written."""
    return await asyncio.get_running_loop().run_in_executor(_lane, write)
