"""A client that leaves ends the work done for it, also where nothing is being sent that could fail."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from anyio import CancelScope
from starlette.requests import ClientDisconnect, Request

Result = TypeVar("Result")


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves. `ClientDisconnect` then.

    The body must have been read: what the connection says next is that it ends.
    """
    # The work is done in the task that waits for it: out of another its result would come turns of the loop later, and
    # with many streams in each turn these are most of what a first token takes.
    with CancelScope() as scope:
        leaving = asyncio.ensure_future(_disconnected(request))
        leaving.add_done_callback(lambda _: scope.cancel())
        try:
            result = await work
            if not leaving.done():
                return result
        finally:
            leaving.cancel()
    # Also where the work is done, for that a client left may be said once only, and is now known here alone.
    raise ClientDisconnect


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
