"""Stop the work for a client that disconnects, also while nothing is being sent."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Result = TypeVar("Result")


async def while_connected(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return the result of `work`. Cancel it and raise `ClientDisconnect` if the client disconnects.

    The body must have been read from `receive`: the next message of the connection is then its end.
    """
    # The work runs in the task that waits for it: the result of another task would come turns of the event loop later,
    # and with many streams these turns are most of the time to first token. It is cancelled as by `asyncio.timeout`;
    # anyio's scopes take several times as long.
    task = asyncio.current_task()
    assert task is not None, "called in a coroutine"
    others, waiting, left = task.cancelling(), True, False

    def leave(_: object) -> None:
        nonlocal left
        if waiting:
            left = task.cancel()

    disconnect = asyncio.create_task(_disconnected(receive))
    disconnect.add_done_callback(leave)
    try:
        result = await work
        if not disconnect.done():
            return result
    except asyncio.CancelledError:
        if not left or task.uncancel() > others:
            raise
    finally:
        waiting = False
        disconnect.cancel()
    # Raised even if the work has finished: the disconnect may be received only once, and nothing else knows of it.
    raise ClientDisconnect


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
