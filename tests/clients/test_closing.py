"""However an answer is left, its connection is given back: with a server whose body knows whether it was closed."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.clients.harness import (
    DONE,
    STREAMED,
    URL,
    Body,
    MakeClient,
    answering,
    event,
    part,
    streaming,
)
from thoughtbubbles_client import AsyncClient, Client, DisconnectedError, InvalidAnswerError, ThoughtbubblesError

PARTS = (event(part("a")), event(part("b")), DONE)


def test_at_its_end(make_client: MakeClient) -> None:
    transport, body = streaming(*PARTS)
    assert [each.text for each in make_client(transport=transport).stream()] == ["a", "b"]
    assert body.closed


def test_at_the_end_of_its_block(make_client: MakeClient) -> None:
    transport, body = streaming(*PARTS)
    with make_client(transport=transport).stream() as stream:
        assert next(stream).text == "a"
        assert not body.closed
    assert body.closed
    assert list(stream) == []


def test_when_its_block_raises(make_client: MakeClient) -> None:
    transport, body = streaming(*PARTS)
    stream = make_client(transport=transport).stream()
    with pytest.raises(ZeroDivisionError), stream:
        1 / len(next(stream).tokens)
    assert body.closed


def test_when_it_is_closed(make_client: MakeClient) -> None:
    transport, body = streaming(*PARTS)
    stream = make_client(transport=transport).stream()
    next(stream)
    for _ in range(2):
        stream.close()
        assert body.closed


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: {\n\n"],
        [b"data: {}\n\n"],
        [event({"error": {"message": "no"}})],
        [event({"error": "no"})],
        [httpx.ReadError("gone")],
        [],
    ],
    ids=["no JSON", "no completion", "an error", "an error of another form", "disconnected", "ended too early"],
)
def test_when_it_breaks(make_client: MakeClient, pieces: list[bytes | Exception]) -> None:
    transport, body = streaming(PARTS[0], *pieces)
    stream = make_client(transport=transport).stream()
    assert next(stream).text == "a"
    with pytest.raises(ThoughtbubblesError):
        next(stream)
    assert body.closed
    assert list(stream) == []


def test_a_loop_that_breaks() -> None:
    """Nothing else holds the stream, so that it ends at once; no cycle makes it wait for the garbage collector."""
    transport, body = streaming(*PARTS)
    gc.disable()
    try:
        with Client(URL, transport=transport) as client:
            for _ in client.stream():
                break
            assert body.closed
    finally:
        gc.enable()


def test_an_async_loop_that_breaks() -> None:
    """The event loop closes what nothing holds."""
    transport, body = streaming(*PARTS)

    async def leave() -> None:
        async with AsyncClient(URL, transport=transport) as client:
            async for _ in client.stream():
                break
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert body.closed

    asyncio.run(leave())


class Silent(Body):
    """A body that never continues."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield PARTS[0]
        await asyncio.Event().wait()


@pytest.mark.parametrize("path", ["task", "wait_for", "timeout"])
def test_a_task_that_is_cancelled(path: str) -> None:
    body = Silent([])
    transport = answering(httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body))

    async def use(client: AsyncClient, begun: asyncio.Event) -> None:
        async for each in client.stream():
            assert each.text == "a"
            begun.set()

    async def leave() -> None:
        begun = asyncio.Event()
        async with AsyncClient(URL, transport=transport) as client:
            if path == "wait_for":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(use(client, begun), 0.01)
            elif path == "timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await use(client, begun)
            else:
                task = asyncio.create_task(use(client, begun))
                await begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert body.closed

    asyncio.run(leave())


class Waiting(Body):
    """A body that waits after its first part until it may continue."""

    def __init__(self) -> None:
        super().__init__(PARTS)
        self.waits, self.may_continue = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        first, *others = super().__iter__()
        yield first
        self.waits.set()
        self.may_continue.wait()
        yield from others


def test_while_another_thread_reads_it() -> None:
    """The message was Python's, of a generator."""
    body = Waiting()
    with Client(URL, transport=answering(httpx.Response(200, headers=STREAMED, stream=body))) as client:
        stream = client.stream()
        with ThreadPoolExecutor(1) as threads:
            others = threads.submit(list, stream)
            body.waits.wait()
            try:
                with pytest.raises(RuntimeError, match="another thread is reading this stream"):
                    stream.close()
                with pytest.raises(RuntimeError, match="another thread is reading this stream"):
                    next(stream)
            finally:
                body.may_continue.set()
            assert [each.text for each in others.result()] == ["a", "b"]
        stream.close()
    assert body.closed


def test_while_another_task_reads_it() -> None:
    body = Silent([])
    transport = answering(httpx.Response(200, headers=STREAMED, stream=body))

    async def use() -> None:
        async with AsyncClient(URL, transport=transport) as client:
            stream = client.stream()
            assert (await anext(stream)).text == "a"
            reader = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task is reading this stream"):
                await stream.aclose()
            with pytest.raises(RuntimeError, match="another task is reading this stream"):
                await anext(stream)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            assert body.closed
            await stream.aclose()

    asyncio.run(use())


def test_nothing_is_sent_before_the_first_part_is_asked_for(make_client: MakeClient) -> None:
    client = make_client(transport=answering())
    with client.stream():
        pass
    client.stream().close()
    client.stream()


@pytest.mark.parametrize(
    ("status", "kind"), [(200, "application/json"), (200, None), (400, "text/event-stream"), (503, "application/json")]
)
def test_an_answer_that_is_no_stream(make_client: MakeClient, status: int, kind: str | None) -> None:
    bodies = [Body([b"{}"]) for _ in range(3)]
    headers = {} if kind is None else {"content-type": kind}
    more = {"x-should-retry": "false"}
    transport = answering(*(httpx.Response(status, headers=headers | more, stream=body) for body in bodies))
    with pytest.raises(ThoughtbubblesError):
        next(make_client(transport=transport).stream())
    assert bodies[0].closed


@pytest.mark.parametrize("pieces", [[b"{}"], [b"{", httpx.ReadTimeout("nothing came")]])
def test_an_answer_that_is_whole(make_client: MakeClient, pieces: list[bytes | Exception]) -> None:
    body = Body(pieces)
    with pytest.raises(ThoughtbubblesError):
        make_client(transport=answering(httpx.Response(200, stream=body))).complete()
    assert body.closed


def test_a_connection_that_breaks_after_the_end(make_client: MakeClient) -> None:
    """Some servers do not end their last chunk; the answer is whole all the same."""
    transport, body = streaming(*PARTS, httpx.RemoteProtocolError("incomplete chunked read"))
    assert [each.text for each in make_client(transport=transport).stream()] == ["a", "b"]
    assert body.closed


def test_a_stream_that_ends_early_is_not_whole(make_client: MakeClient) -> None:
    transport, _ = streaming(*PARTS[:2], b"data: [DO")
    stream = make_client(transport=transport).stream()
    assert [next(stream).text, next(stream).text] == ["a", "b"]
    with pytest.raises(DisconnectedError, match="before the answer was whole"):
        next(stream)


def test_events_of_other_names_and_after_the_end_are_skipped(make_client: MakeClient) -> None:
    transport, _ = streaming(b"event: ping\ndata: now\n\n", *PARTS, b"data: {\n\n")
    assert [each.text for each in make_client(transport=transport).stream()] == ["a", "b"]
    transport, _ = streaming(b"event: error\ndata: now\n\n")
    with pytest.raises(InvalidAnswerError):
        next(make_client(transport=transport).stream())
