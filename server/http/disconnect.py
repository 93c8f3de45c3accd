"""Stop the work for a client that disconnects, also while nothing is being sent."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from anyio import CancelScope
from starlette.requests import ClientDisconnect, Request

Result = TypeVar("Result")


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of `work`. Cancel it and raise `ClientDisconnect` if the client disconnects.

    The body must have been read: the next message of the connection is then its end.
    """
    # The work runs in the task that waits for it: the result of another task would come turns of the event loop later,
    # and with many streams these turns are most of the time to first token.
    with CancelScope() as scope:
        disconnect = asyncio.ensure_future(_disconnected(request))
        disconnect.add_done_callback(lambda _: scope.cancel())
        try:
            result = await work
            if not disconnect.done():
                return result
        finally:
            disconnect.cancel()
    # Raised even if the work has finished: the disconnect may be received only once, and nothing else knows of it.
    raise ClientDisconnect


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
