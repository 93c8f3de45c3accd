"""Continuous batching: who runs in the next step. Requests join and leave between any two steps. No torch in here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.config import EngineConfig
from engine.errors import QueueFull
from engine.fork_cache import ForkCache
from engine.request import Request
from engine.waiting import Waiting

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Plan:
    """The next step."""

    phase: Phase
    """`prefill` takes in new requests, `decode` gives every running one a token."""
    requests: list[Request]


@dataclass
class Scheduler:
    """Waiting → running → gone; first come, first served, the last to come is the first to be preempted."""

    config: EngineConfig
    cache: ForkCache
    waiting: Waiting = field(init=False)
    running: list[Request] = field(default_factory=list)
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.waiting = Waiting(self.cache.config)

    def add(self, request: Request) -> None:
        """Queue a request. Raises `QueueFull` when with it those who wait would need over `max_waiting_streams`."""
        streams = self.waiting.streams + self.waiting.streams_of(request)
        if self.waiting and streams > self.config.max_waiting_streams:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting; with this one they would need {streams} streams, and "
                f"max_waiting_streams allows {self.config.max_waiting_streams}"
            )
        self.waiting.append(request)

    def schedule(self) -> Plan:
        """The next step: new requests first, as many as fit; else everyone who runs."""
        if admitted := self._admit():
            return Plan("prefill", admitted)
        self._make_room()
        return Plan("decode", list(self.running))

    def remove(self, request: Request) -> None:
        """Let a request go, finished or aborted; its pages are free at once."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        else:
            self.waiting.remove(request)

    def _admit(self) -> list[Request]:
        admitted: list[Request] = []
        tokens = 0
        while self.waiting and len(self.running) < self.config.max_batch_size:
            request = self.waiting.first
            tokens += request.num_tokens
            if admitted and tokens > self.config.max_prefill_tokens:
                break
            if not self._fits([*self.running, request], ahead=1 if self.running else 0):
                break
            self.running.append(self.waiting.popleft())
            admitted.append(request)
        for request in admitted:
            request.state = self.cache.open() if request.cached else None
        return admitted

    def _make_room(self) -> None:
        """Preempt by recomputation: a victim gives back its pages and later starts again with the tokens it has."""
        while not self._fits(self.running):
            victim = self.running.pop()
            self._release(victim)
            self.waiting.appendleft(victim)
            self.preemptions += 1

    def _fits(self, requests: Iterable[Request], ahead: int = 0) -> bool:
        """Whether these can compute the tokens they have, and `ahead` more, in the pages that are free."""
        return self.cache.fits([self._need(request, ahead) for request in requests if request.cached])

    def _need(self, request: Request, ahead: int) -> Sequence[int]:
        tokens = min(request.num_tokens + ahead, request.max_tokens)
        return self.cache.pages_needed(request.selection, tokens, request.state)

    def _release(self, request: Request) -> None:
        if request.state:
            self.cache.close(request.state)
            request.state = None
