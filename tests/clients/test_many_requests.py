"""Many requests at once over one client: none waits for another's answer."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from thoughtbubbles_client import AsyncClient, Client, RetryPolicy

ANSWER = b'{"tokens": [1]}'
MANY = 150


@asynccontextmanager
async def server(at_once: int) -> AsyncIterator[str]:
    """A server that answers when so many requests are there."""
    arrived = asyncio.Barrier(at_once)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):  # the test failed
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size.split(b":")[1]))
            await arrived.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=at_once)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


def test_tasks_do_not_wait_for_each_other() -> None:
    async def run() -> list[list[int]]:
        async with server(MANY) as url, AsyncClient(url, timeout=5, retry=RetryPolicy(retries=0)) as client:
            return await asyncio.gather(*(client.tokenize("a") for _ in range(MANY)))

    assert asyncio.run(run()) == [[1]] * MANY


def test_threads_do_not_wait_for_each_other() -> None:
    async def run() -> list[list[int]]:
        loop = asyncio.get_running_loop()
        async with server(MANY) as url:
            with Client(url, timeout=5, retry=RetryPolicy(retries=0)) as client, ThreadPoolExecutor(MANY) as threads:
                return await asyncio.gather(*(loop.run_in_executor(threads, client.tokenize, "a") for _ in range(MANY)))

    assert asyncio.run(run()) == [[1]] * MANY
