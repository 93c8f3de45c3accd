"""What tests of the server work with: an engine that can be held up, and a server that listens."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import httpx

from engine import Engine, EngineConfig, TokenEvent
from model import Thoughtbubbles, Tokenizer
from server.loading import ServedModel
from server.service import Service
from server.settings import ServerSettings

Json = dict[str, Any]


class GatedEngine(Engine):
    """The real engine, whose steps a test can hold up and make fail."""

    def __init__(self, model: Thoughtbubbles, tokenizer: Tokenizer, config: EngineConfig) -> None:
        super().__init__(model, tokenizer, config)
        self.steps = 0
        self.fault: Exception | None = None
        self._gate = threading.Condition()
        self._passes: float = math.inf
        self._standing = False

    def step(self) -> list[TokenEvent]:
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
        """Let this many steps pass; the next one stands still."""
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

    def wait_until_held(self) -> None:
        """Wait until a step stands still."""
        with self._gate:
            assert self._gate.wait_for(lambda: self._standing, timeout=30), "no step came to the gate"


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    service: Service
    engine: GatedEngine
    client: httpx.Client

    def complete(self, **body: object) -> Json:
        """The answer to a completion that is expected to succeed."""
        response = self.client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def wait_until_asked(self) -> None:
        """Wait until a command of a client's lies before the engine, which a held step keeps from taking it."""
        eventually(lambda: self.service.worker._thread._commands.qsize() == 1)

    def error(self, status: int, **body: object) -> Json:
        """The error object of a completion that is expected to fail."""
        response = self.client.post("/v1/completions", json=body)
        assert response.status_code == status, response.text
        return response.json()["error"]


Serve = Callable[..., AbstractContextManager[Running]]
MakeEngine = Callable[[ServerSettings], tuple[GatedEngine, ServedModel]]
MakeService = Callable[..., tuple[Service, GatedEngine]]


def eventually(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
