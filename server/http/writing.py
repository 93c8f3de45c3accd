"""Where long answers become JSON: not on the event loop, and one at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic_core import to_json

from thoughtbubbles.server.protocol.requests import Json

Written = TypeVar("Written")

# While they are written, a prompt's log-probabilities take 320 bytes each, of Python's objects. Python runs one thread
# at a time, so more lanes would take more memory and no less time, and keep short requests out of asyncio's own.
_lane = ThreadPoolExecutor(1, thread_name_prefix="writer")


def answer_json(answer: Json) -> bytes:
    """Return a whole answer as JSON, made a choice at a time: while one is made no other thread runs Python."""
    head = to_json({name: value for name, value in answer.items() if name != "choices"})
    return b'%b,"choices":[%b]}' % (head[:-1], b",".join(map(to_json, answer["choices"])))


async def write_alone(write: Callable[[], Written]) -> Written:
    """What `write` returns, when all that came before it has been written."""
    return await asyncio.get_running_loop().run_in_executor(_lane, write)
