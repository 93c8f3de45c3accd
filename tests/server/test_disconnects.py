"""Clients that leave: whatever they were waiting for, their pages are free within a step and the counts add up."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import ASGIApp, Message, Scope

from tests.server.harness import GatedEngine, MakeService, Running, eventually
from thoughtbubbles.server.app import create_app
from thoughtbubbles.server.service import Service


def body_of(**body: object) -> bytes:
    return json.dumps({"prompt": "leaving", "max_tokens": 40, **body}).encode()


def scope_of(path: str) -> Scope:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"test")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip


class Connection:
    """One request over bare ASGI."""

    def __init__(self, body: bytes, *, more_body: bool = False) -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": more_body})

    async def receive(self) -> Message:
        return await self._inbox.get()

    async def send(self, message: Message) -> None:
        self.sent.put_nowait(message)

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})


Scenario = Callable[[ASGIApp, Service, GatedEngine], Awaitable[None]]


def play(make_service: MakeService, scenario: Scenario) -> None:
    """Run `scenario(app, service, engine)` while the engine's thread runs."""

    async def run() -> None:
        service, engine = make_service()
        app = create_app(service)
        service.worker.start()
        try:
            async with asyncio.timeout(30):
                await service.worker.loaded.wait()
                await scenario(app, service, engine)
        finally:
            engine.let_go()
            await service.worker.stop()

    asyncio.run(run())


def finished(service: Service) -> dict[str, int]:
    return {reason: count for reason, count in service.metrics.meter.snapshot.finished.items() if count}


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_leaving_frees_the_pages_within_a_step(make_service: MakeService, stream: bool, after: int) -> None:
    async def scenario(app: ASGIApp, service: Service, engine: GatedEngine) -> None:
        engine.hold(after=after)
        connection = Connection(body_of(stream=stream, n=3))
        answering = asyncio.create_task(app(scope_of("/v1/completions"), connection.receive, connection.send))
        await asyncio.to_thread(engine.wait_until_held)
        assert (engine.stats().cache_streams > 0) == (after > 0)
        connection.leave()
        await answering
        engine.let_go()
        await until(lambda: finished(service) == {"abort": 3})
        assert engine.steps == after + 1, "the step that stood still was the last"
        assert engine.stats().cache_streams == 0
        assert service.worker.idle.is_set()

    play(make_service, scenario)


def test_leaving_in_the_queue(make_service: MakeService) -> None:
    async def scenario(app: ASGIApp, service: Service, engine: GatedEngine) -> None:
        engine.hold(after=1)
        connections = [Connection(body_of(stream=True)) for _ in range(12)]  # 8 fit a batch
        answers = [
            asyncio.create_task(app(scope_of("/v1/completions"), each.receive, each.send)) for each in connections
        ]
        await until(lambda: service.metrics.meter.snapshot.accepted > 0)
        await asyncio.to_thread(engine.wait_until_held)
        for each in connections[1:]:
            each.leave()
        await asyncio.gather(*answers[1:])
        engine.let_go()
        await answers[0]
        assert finished(service) == {"length": 1, "abort": 11}
        assert engine.stats().cache_streams == 0

    play(make_service, scenario)


def test_leaving_before_the_body_is_read(make_service: MakeService) -> None:
    async def scenario(app: ASGIApp, service: Service, engine: GatedEngine) -> None:
        connection = Connection(b"", more_body=True)
        connection.leave()
        await app(scope_of("/v1/completions"), connection.receive, connection.send)
        assert connection.sent.get_nowait()["status"] == 499
        assert service.metrics.meter.snapshot.accepted == 0

    play(make_service, scenario)


def test_leaving_before_the_stream_is_first_asked_for(make_service: MakeService) -> None:
    """The client has disconnected when the response begins: its iterator, which would clean up, never runs."""

    async def scenario(app: ASGIApp, service: Service, engine: GatedEngine) -> None:
        connection = Connection(body_of(stream=True))

        async def leave_at_the_status(message: Message) -> None:
            connection.leave()
            await asyncio.sleep(3600)

        engine.hold(after=1)
        await app(scope_of("/v1/completions"), connection.receive, leave_at_the_status)
        engine.let_go()
        await until(lambda: finished(service) == {"abort": 1})
        assert engine.stats().cache_streams == 0

    play(make_service, scenario)


def test_leaving_at_the_last_token_counts_once(make_service: MakeService) -> None:
    async def scenario(app: ASGIApp, service: Service, engine: GatedEngine) -> None:
        engine.hold(after=1)
        connection = Connection(body_of(stream=True, max_tokens=2))
        answering = asyncio.create_task(app(scope_of("/v1/completions"), connection.receive, connection.send))
        await asyncio.to_thread(engine.wait_until_held)
        engine.let_go()
        await until(lambda: finished(service) == {"length": 1})
        connection.leave()
        await answering
        await asyncio.to_thread(lambda: None)
        assert finished(service) == {"length": 1}

    play(make_service, scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_a_socket_that_closes(server: Running, stream: bool) -> None:
    before = dict(server.service.metrics.meter.snapshot.finished)
    left = server.service.metrics.disconnects._value.get()
    server.engine.hold(after=2)
    body = body_of(stream=stream)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        if stream:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        server.engine.wait_until_held()
    eventually(lambda: server.service.metrics.disconnects._value.get() == left + 1)
    server.engine.let_go()
    eventually(lambda: server.service.metrics.meter.snapshot.finished["abort"] == before["abort"] + 1)
    assert server.engine.stats().cache_streams == 0
