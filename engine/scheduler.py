"""Continuous batching: who runs in the next step. Requests join and leave between any two steps. No torch in here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.config import EngineConfig
from engine.errors import QueueFull
from engine.fork_cache import ForkCache, ForkState, Prefix
from engine.prefix_index import BLOCK, common_prefix
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
    prefix_queries: int = 0
    prefix_hits: int = 0

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
            prefix = self._find(request)
            held = prefix.state.tokens if prefix else 0
            tokens += request.num_tokens - held
            if admitted and (
                tokens > self.config.max_prefill_tokens or self._gains_by_waiting(request, held, admitted)
            ):
                break
            if not self._open(request, prefix):
                break
            self.running.append(self.waiting.popleft())
            admitted.append(request)
        return admitted

    def _find(self, request: Request) -> Prefix | None:
        """What the cache has of its tokens; the last is left to compute, for its logits."""
        return self.cache.find(request.selection, request.tokens[:-1]) if self._shares(request) else None

    def _gains_by_waiting(self, request: Request, held: int, admitted: list[Request]) -> bool:
        """Whether a step later it could start from what one of these computes, as the choices of one prompt can."""
        if not self._shares(request):
            return False
        others = [other for other in admitted if other.selection == request.selection]
        return any(common_prefix(request.tokens[:-1], other.tokens) - held >= BLOCK for other in others)

    def _shares(self, request: Request) -> bool:
        """Whether it may start from a prefix; a report of its prompt needs all of that computed."""
        return self.config.prefix_caching and request.cached and not request.wants_prompt_report

    def _open(self, request: Request, found: Prefix | None) -> bool:
        """Give a request its state, from a prefix or, where that leaves too little room, empty; False if none fits."""
        if not request.cached:
            return True
        ahead = 1 if self.running else 0
        running = [self._need(each, each.state, ahead) for each in self.running if each.cached]
        for prefix in dict.fromkeys((found, None)):
            need = self._need(request, prefix.state if prefix else None, ahead)
            if self.cache.fits([*running, need], spare=prefix):
                request.state = self.cache.open(request.selection, prefix)
                self._count(request, request.state.tokens)
                return True
        return False

    def _count(self, request: Request, held: int) -> None:
        self.prefix_queries += request.num_tokens
        self.prefix_hits += held
        if request.cached_tokens is None:
            request.cached_tokens = held

    def _make_room(self) -> None:
        """Preempt by recomputation: a victim gives back its pages and later starts again with the tokens it has."""
        while not self._fits(self.running):
            victim = self.running.pop()
            self._release(victim)
            self.waiting.appendleft(victim)
            self.preemptions += 1

    def _fits(self, requests: Iterable[Request]) -> bool:
        """Whether these can compute the tokens they have in the pages that are free."""
        return self.cache.fits([self._need(request, request.state) for request in requests if request.cached])

    def _need(self, request: Request, state: ForkState | None, ahead: int = 0) -> Sequence[int]:
        """Pages to compute the tokens that a request has, and `ahead` more, on from a state."""
        tokens = min(request.num_tokens + ahead, request.max_tokens)
        return self.cache.pages_needed(request.selection, tokens, state)

    def _release(self, request: Request) -> None:
        if request.state:
            self.cache.close(request.state)
            request.state = None
