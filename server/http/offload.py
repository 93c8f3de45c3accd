"""Long work runs on threads of its own, so that the event loop answers other requests meanwhile; short work stays."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from thoughtbubbles.server.http.disconnect import while_connected

Result = TypeVar("Result")

INLINE_LENGTH = 1 << 12
"""Work on at most this many characters takes less time than waking a thread and then the event loop."""

# One thread each. Python runs one thread at a time, so more would save no time, and the event loop would wait longer.
REQUESTS = ThreadPoolExecutor(1, thread_name_prefix="requests")
"""Parses generation requests."""
GRAMMARS = ThreadPoolExecutor(4, thread_name_prefix="grammars")
"""Plans requests with grammars. Compiling one takes up to some seconds, mostly without the interpreter lock; several
threads, so that requests with grammars that are compiled already need not wait."""
TOKENS = ThreadPoolExecutor(1, thread_name_prefix="tokens")
"""Tokenizes for /tokenize and /detokenize; generation requests do not wait for these."""
LONG_ANSWERS = ThreadPoolExecutor(1, thread_name_prefix="writer")
"""Writes answers with log-probabilities of prompts, one at a time: each takes 320 bytes per token meanwhile."""


async def offload(work: Callable[[], Result], length: int, executor: Executor = REQUESTS) -> Result:
    """Return what `work` returns. It runs on `executor` if it has more than `INLINE_LENGTH` characters to work on."""
    return work() if length <= INLINE_LENGTH else await run_on(executor, work)


async def offload_planning(request: Request, work: Callable[[], Result], length: int, *, compiles: bool) -> Result:
    """Return what `work` returns, as `offload` does; always on a thread if it `compiles` a grammar.

    Such work is dropped if its client disconnects before it starts: `ClientDisconnect`.
    """
    if not compiles:
        return await offload(work, length)
    return await while_connected(request.receive, run_on(GRAMMARS, work))


async def run_on(executor: Executor, work: Callable[[], Result]) -> Result:
    """Return what `work` returns on a thread of `executor`."""
    return await asyncio.get_running_loop().run_in_executor(executor, work)
