"""Questions and answers between two processes, here between two ends in one."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from thoughtbubbles.server.bridge.errors import LoadRefusedError, LoadTimeoutError, UnavailableError
from thoughtbubbles.server.processes.channel import Channel

SECONDS = 30
"""How long a question may wait before it counts as lost."""
Answer = Callable[[object], Awaitable[object]]


@asynccontextmanager
async def ends(one: Answer, two: Answer) -> AsyncIterator[tuple[Channel, Channel]]:
    here, there = socket.socketpair()
    channels = await Channel.open(here, one), await Channel.open(there, two)
    yield channels
    for channel in channels:
        channel.close()
        await channel.closed()


async def echo(question: object) -> object:
    return question


def test_both_sides_ask_at_once_and_get_their_own_answers() -> None:
    """Slow answers do not keep quick ones waiting."""
    release = asyncio.Event()

    async def slowly(question: object) -> object:
        if question == "slow":
            await release.wait()
        return f"{question}!"

    async def run() -> list[object]:
        async with ends(echo, slowly) as (one, two):
            slow = asyncio.create_task(one.ask("slow"))
            quick = [await one.ask("a" * 100_000), await two.ask("b"), await one.ask("c")]
            assert not slow.done()
            release.set()
            return [*quick, await slow]

    assert asyncio.run(run()) == ["a" * 100_000 + "!", "b", "c!", "slow!"]


@pytest.mark.parametrize(
    "error", [UnavailableError("draining"), LoadRefusedError("no such folder"), LoadTimeoutError(3.0)]
)
def test_an_exception_is_an_answer(error: Exception) -> None:
    """It is the same on the other side."""

    async def fail(_question: object) -> object:
        raise error

    async def run() -> Exception:
        async with ends(echo, fail) as (one, _):
            with pytest.raises(type(error)) as raised:
                await one.ask("x")
            return raised.value

    raised = asyncio.run(run())
    assert (str(raised), vars(raised)) == (str(error), vars(error))


def test_a_side_that_closes_answers_nothing_more() -> None:
    """What has been asked, and what is asked later, raises."""

    async def never(_question: object) -> object:
        return await asyncio.Event().wait()

    async def run() -> None:
        async with ends(echo, never) as (one, two):
            asked = asyncio.create_task(one.ask("x"))
            await asyncio.sleep(0)
            two.close()
            await one.closed()
            for question in (asked, one.ask("y")):
                with pytest.raises(ConnectionResetError):
                    await question

    asyncio.run(run())


def test_an_answer_that_nobody_awaits_any_more() -> None:
    release = asyncio.Event()

    async def late(question: object) -> object:
        if question == "late":
            await release.wait()
        return question

    async def run() -> object:
        async with ends(echo, late) as (one, _):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await one.ask("late")
            release.set()
            return await one.ask("next")

    assert asyncio.run(run()) == "next"


def test_a_question_that_is_cancelled_while_the_other_side_closes_leaves_no_other_waiting() -> None:
    """As when a time limit passes in the turn of the event loop in which the channel's end is read."""

    async def run() -> None:
        here, there = socket.socketpair()
        channel = await Channel.open(here, echo)
        cancelled, asked = (asyncio.create_task(channel.ask(question)) for question in ("first", "second"))
        await asyncio.sleep(0)
        channel._reader.feed_eof()
        cancelled.cancel()
        async with asyncio.timeout(SECONDS):
            with pytest.raises(ConnectionResetError):
                await asked
        channel.close()
        there.close()

    asyncio.run(run())
