"""Work for a client, and the client's leaving, in every order, turn by turn of the event loop."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from thoughtbubbles.server.http.disconnect import while_connected

Work = asyncio.Future[str]
Said = asyncio.Queue[Message]
Waiting = asyncio.Task[str]
LEAVES: Message = {"type": "http.disconnect"}


def play(case: Callable[[Work, Said, Waiting], Awaitable[None]]) -> None:
    """Run `case(work, said, waiting)`: the work, what the connection says, and who waits for either."""

    async def run() -> None:
        work, said = Work(), Said()
        waiting = asyncio.create_task(while_connected(said.get, work))
        await turns(2)
        await case(work, said, waiting)
        await turns(2)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "somebody still waits"

    asyncio.run(run())


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_the_result_comes_in_the_next_turn() -> None:
    async def case(work: Work, said: Said, waiting: Waiting) -> None:
        work.set_result("done")
        await turns(1)
        assert waiting.result() == "done"

    play(case)


def test_what_goes_wrong_comes_as_it_is() -> None:
    async def case(work: Work, said: Said, waiting: Waiting) -> None:
        work.set_exception(ValueError("a mistake"))
        with pytest.raises(ValueError, match="a mistake"):
            await waiting

    play(case)


def test_leaving_ends_the_work() -> None:
    async def case(work: Work, said: Said, waiting: Waiting) -> None:
        said.put_nowait(LEAVES)
        with pytest.raises(ClientDisconnect):
            await waiting
        assert work.cancelled()

    play(case)


def test_leaving_just_before_the_work_is_done_is_told() -> None:
    async def case(work: Work, said: Said, waiting: Waiting) -> None:
        said.put_nowait(LEAVES)
        work.set_result("done")
        with pytest.raises(ClientDisconnect):
            await waiting

    play(case)


def test_leaving_just_after_the_work_is_done_is_left_to_whoever_answers() -> None:
    async def case(work: Work, said: Said, waiting: Waiting) -> None:
        work.set_result("done")
        said.put_nowait(LEAVES)
        assert await waiting == "done"
        await turns(1)
        assert said.get_nowait() == LEAVES

    play(case)


def test_who_is_cancelled_ends_the_work_and_is_cancelled() -> None:
    async def case(work: Work, said: Said, waiting: Waiting) -> None:
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert work.cancelled()

    play(case)
