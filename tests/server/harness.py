"""Tools of the server's tests: an engine that can be blocked, and a server that listens."""

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import torch
import uvicorn

from thoughtbubbles.engine import Engine, EngineConfig, TokenEvent
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer
from thoughtbubbles.server.app import create_app
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.lifecycle import uvicorn_config
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings
from thoughtbubbles.server.sockets import listen

CONTEXT = 64
Json = dict[str, Any]


class GatedEngine(Engine):
    """The real engine, whose steps a test can hold up and make fail."""

    def __init__(self, model: Thoughtbubbles, tokenizer: Tokenizer, config: EngineConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.steps = 0
        self.fault: Exception | None = None
        self.before_step: Callable[[], None] = lambda: None
        self._gate = threading.Condition()
        self._passes: float = math.inf
        self._standing = False

    def step(self) -> list[TokenEvent]:
        self.before_step()
        with self._gate:
            self._standing = self._passes < 1
            self._gate.notify_all()
            assert self._gate.wait_for(lambda: self._passes >= 1, timeout=30), "the test left the engine at the gate"
            self._passes -= 1
        if self.fault is not None:
            raise self.fault
        self.steps += 1
        return super().step()

    def hold(self, after: int = 0) -> None:
        """Let this many steps pass and block the next one."""
        with self._gate:
            self._passes = after

    def pass_step(self) -> None:
        """Let one more step pass."""
        with self._gate:
            self._passes += 1
            self._standing = False
            self._gate.notify_all()

    def let_go(self) -> None:
        """Hold up no more."""
        with self._gate:
            self._passes = math.inf
            self._standing = False
            self._gate.notify_all()

    @property
    def held(self) -> bool:
        """Whether a step is blocked."""
        with self._gate:
            return self._standing

    def wait_until_held(self) -> None:
        """Wait until a step is blocked."""
        with self._gate:
            assert self._gate.wait_for(lambda: self._standing, timeout=30), "no step came to the gate"


@dataclass(frozen=True)
class Listening:
    """A server that listens."""

    url: str
    service: Service
    client: httpx.Client

    def complete(self, **body: object) -> Json:
        """The answer to a completion that is expected to succeed."""
        response = self.client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def error(self, status: int, **body: object) -> Json:
        """The error object of a completion that is expected to fail."""
        response = self.client.post("/v1/completions", json=body)
        assert response.status_code == status, response.text
        return response.json()["error"]


@dataclass(frozen=True)
class Running(Listening):
    """A running server whose engine can be blocked."""

    engine: GatedEngine

    def wait_until_asked(self, commands: int = 1) -> None:
        """Wait until commands of clients are queued, which a blocked step keeps the engine from executing."""
        eventually(lambda: self.service.worker._thread._commands.qsize() == commands)


@contextmanager
def listening(service: Service) -> Iterator[Listening]:
    """Run it for the length of a `with` block, once it is ready."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn_config(create_app(service), service))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            eventually(lambda: service.metrics.meter.snapshot is not None)
            eventually(lambda: client.get("/ready").status_code == 200)
            yield Listening(url, service, client)
    finally:
        server.should_exit = True
        thread.join(30)


Serve = Callable[..., AbstractContextManager[Running]]
MakeEngine = Callable[[ServerSettings], tuple[GatedEngine, ServedModel]]
MakeService = Callable[..., tuple[Service, GatedEngine]]
Client = Callable[[Running], object]
RunBeside = Callable[..., tuple[int, object]]


def eventually(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def connected(server: Listening) -> socket.socket:
    """A connection of one's own."""
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30)


def read(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    told = b""
    while more := client.recv(1 << 16):
        told += more
    return told


@contextmanager
def keeping_up(server: Running) -> Iterator[None]:
    """Each step is read before the next one begins, however slow the loop."""
    worker = server.service.worker

    async def unread() -> bool:
        return any(generation._pending for generation in worker._by_request.values())

    def all_is_read() -> bool:
        return not asyncio.run_coroutine_threadsafe(unread(), worker._thread._loop).result(30)

    server.engine.before_step = lambda: eventually(all_is_read)
    try:
        yield
    finally:
        server.engine.before_step = lambda: None


@contextmanager
def events(server: Listening, **body: object) -> Iterator[Iterator[str]]:
    """What the data lines of a stream hold, as they come."""
    with server.client.stream("POST", "/v1/completions", json={"stream": True, **body}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))


def chunks(server: Listening, **body: object) -> list[Json]:
    with events(server, **body) as told:
        *parts, last = told
    assert last == "[DONE]"
    return [json.loads(part) for part in parts]


def joined(parts: list[Json], index: int) -> Json:
    """One choice of a stream, put together as a client would."""
    mine = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
    assert all(choice["finish_reason"] is None for choice in mine[:-1])
    whole = {**mine[-1], "text": "".join(choice["text"] for choice in mine)}
    for name in ("token_ids", "fork_counts"):
        if name in whole:
            whole[name] = [each for choice in mine for each in choice[name]]
    if "prompt_token_ids" in mine[0]:
        whole["prompt_token_ids"] = mine[0]["prompt_token_ids"]
    if whole["logprobs"] is not None:
        whole["logprobs"] = {
            name: [each for choice in mine for each in choice["logprobs"][name]] for name in whole["logprobs"]
        }
    return whole


def random_model(vocab_size: int) -> Thoughtbubbles:
    """A tiny model, unsure of the next token, its forks lively."""
    torch.manual_seed(0)
    model = Thoughtbubbles(
        ModelConfig(
            vocab_size=vocab_size, block_size=CONTEXT, max_block_size=2 * CONTEXT, n_layer=3, n_head=2, n_embd=32,
            fork_layers=(1, 2),
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "fork" in name:
                parameter.normal_(std=0.5)
            elif "wte" in name:
                parameter.normal_(std=0.2)
    return model
