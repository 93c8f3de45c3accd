"""Continuous batching: who runs in the next step. Requests join and leave between any two steps. No torch in here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from thoughtbubbles.engine.cache.fork_cache import ForkCache, Prefix
from thoughtbubbles.engine.cache.prefix_index import BLOCK
from thoughtbubbles.engine.config import EngineConfig
from thoughtbubbles.engine.errors import ClientQueueFull, QueueFull
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.request_queue import Waiting

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Plan:
    """The next step."""

    phase: Phase
    """`prefill` takes in tokens of new requests, `decode` gives every running one a token."""
    requests: list[Request]
    tokens: list[int]
    """How many tokens of each are computed; under the rules that are recomputed, it is always all."""


@dataclass
class Scheduler:
    """Waiting → arriving → running → gone; first come, first served, the last to come is the first to be preempted."""

    config: EngineConfig
    cache: ForkCache
    max_prefill_tokens: int
    """Tokens that one step may take in."""
    waiting: Waiting = field(init=False)
    arriving: list[Request] = field(default_factory=list)
    """Those who have a place, and whose tokens are not all computed yet."""
    running: list[Request] = field(default_factory=list)
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    _taken_in: bool = False
    """Whether the last step did nothing but take in tokens, so that it is the turn of those who run."""
    _computing: int = 0
    """Tokens that the step under way takes in."""

    def __post_init__(self) -> None:
        self.waiting = Waiting(self.cache.config)

    def add(self, request: Request) -> None:
        """Queue a request. Raises `QueueFull` when with it those who wait would need over `max_waiting_streams`, and
        `ClientQueueFull` when those of its client would need over their share when complete.
        """
        streams = self.waiting.streams + self.waiting.streams_of(request)
        if self.waiting and streams > self.config.max_waiting_streams:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting; with this one they would need {streams} streams, and "
                f"max_waiting_streams allows {self.config.max_waiting_streams}"
            )
        self._check_share(request)
        self.waiting.append(request)

    def _check_share(self, request: Request) -> None:
        most, before = self.config.max_client_streams, self.waiting.streams_of_client(request.client)
        if most is None or before == 0:
            return
        if (streams := before + self.waiting.complete_streams_of(request)) > most:
            raise ClientQueueFull(
                f"requests of this client are waiting; with this one they may need {streams} streams when complete, and"
                f" max_client_share allows {most}"
            )

    def schedule(self) -> Plan:
        """The next step: a share of what arrives; else a token for all who run, as after a step that gave them none.

        So a long prompt, which is taken in by shares of `max_prefill_tokens`, holds nobody up for more than one.
        """
        self._free_pages()
        self.admit()
        if self.arriving and not (self.running and self._taken_in):
            self._taken_in = True
            return self._take_in()
        self._taken_in = False
        return Plan("decode", list(self.running), [1] * len(self.running))

    def admit(self) -> None:
        """Give places to those who wait, as long as there are any and one step could take in what they bring.

        `schedule` does so; whoever waits for a step may do so beforehand.
        """
        if not self._may_admit:
            return
        tokens = sum(request.num_pending for request in self.arriving) - self._computing
        needs = self._needs(ahead=1)
        while self._may_admit:
            request = self.waiting.first
            prefix = self._find(request)
            held = prefix.state.tokens if prefix else 0
            tokens += request.num_tokens - held
            if self.arriving and (tokens > self.max_prefill_tokens or self._gains_by_waiting(request, held)):
                return
            if not self._open(request, prefix, needs):
                return
            self.arriving.append(self.waiting.popleft())

    def go_on(self) -> None:
        """Note that everyone who runs gets a token beside what this step takes in: they need no turn of their own."""
        self._taken_in = False

    def settle(self, requests: Sequence[Request]) -> None:
        """Move requests of the step just computed to `running` once all their tokens are computed.

        A request that was admitted during the step is not among them.
        """
        self._computing, computed = 0, set(requests)
        complete = [each for each in self.arriving if each in computed and _is_computed(each)]
        self.running += complete
        self.arriving = _without(complete, self.arriving)

    def remove(self, requests: Sequence[Request]) -> None:
        """Let requests go, finished or aborted; their pages are free at once."""
        for request in set(requests).difference(self.running, self.arriving):
            self.waiting.remove(request)
        self.running, self.arriving = _without(requests, self.running), _without(requests, self.arriving)
        self.cache.close([request.state for request in requests if request.state])
        for request in requests:
            request.state = None
            request.asked = len(request.output)  # what the device makes of it, nobody waits for

    def _take_in(self) -> Plan:
        """Tokens of those who arrive, in their order, as many as a step may take."""
        requests: list[Request] = []
        tokens: list[int] = []
        left = self.max_prefill_tokens
        for request in self.arriving:
            pending = request.num_pending
            share = pending if self._is_whole(request) else min(pending, left)
            if requests and (share > left or left == 0):
                break
            requests.append(request)
            tokens.append(share)
            left = max(0, left - share)
        self._computing = sum(tokens)
        return Plan("prefill", requests, tokens)

    def _is_whole(self, request: Request) -> bool:
        """Whether its prompt is computed in one step: what is told of it needs all of it at hand."""
        return not request.cached or request.wants_prompt_report

    @property
    def _may_admit(self) -> bool:
        return len(self.waiting) > 0 and len(self.running) + len(self.arriving) < self.config.max_batch_size

    def _find(self, request: Request) -> Prefix | None:
        """What the cache has of its tokens; the last is left to compute, for its logits."""
        return self.cache.find(request.selection, request.tokens[:-1]) if self._shares(request) else None

    def _gains_by_waiting(self, request: Request, held: int) -> bool:
        """Whether later it could start from what those who arrive compute, as the choices of one prompt can."""
        if not self._shares(request):
            return False
        enough = held + BLOCK
        if enough >= request.num_tokens:  # the last is computed in any case
            return False
        ours = request.first(enough)
        others = (other for other in self.arriving if other.prompt[0] == ours[0])  # few, where prompts begin apart
        return any(other.selection == request.selection and other.first(enough) == ours for other in others)

    def _shares(self, request: Request) -> bool:
        """Whether it may start from a prefix; a report of its prompt needs all of that computed."""
        return self.config.prefix_caching and request.cached and not request.wants_prompt_report

    def _open(self, request: Request, found: Prefix | None, needs: list[Sequence[int]]) -> bool:
        """Give a request its state, from a prefix or, where that leaves too little room, empty; False if none fits.

        Its need joins those of the others, `needs`.
        """
        if not request.cached:
            return True
        for prefix in dict.fromkeys((found, None)):
            reach = _reach(request, ahead=1 if needs else 0)
            need = self.cache.pages_needed(request.selection, reach, prefix.state if prefix else None)
            if self.cache.fits([*needs, need], keep=prefix):
                self.cache.evict([*needs, need], keep=prefix)
                request.state = self.cache.open(request.selection, prefix)
                self._count(request, request.state.tokens)
                needs.append(need)
                return True
        return False

    def _count(self, request: Request, held: int) -> None:
        self.prefix_queries += request.num_tokens
        self.prefix_hits += held
        if request.cached_tokens is None:
            request.cached_tokens = held

    def _free_pages(self) -> None:
        """Evict prefixes, and preempt where that is not enough, until all can compute the tokens they have.

        The last to come of those with pages is preempted, by recomputation: it later starts again with its tokens.
        """
        while not self.cache.fits(needs := self._present_needs()):
            victim = [each for each in (*self.running, *self.arriving) if each.cached][-1]
            self.remove([victim])
            self.waiting.appendleft(victim)
            self.preemptions += 1
        self.cache.evict(needs)

    def _present_needs(self) -> list[Sequence[int]]:
        """Return pages that are enough for the tokens all have: a quick upper bound where that fits, else exactly."""
        bound = self.cache.most_needed(len(self.running))
        return [bound] if not self.arriving and self.cache.fits([bound]) else self._needs()

    def _needs(self, ahead: int = 0) -> list[Sequence[int]]:
        """The pages that all who have any may need to go on by so many tokens, together; none where nobody has."""
        holding = [request for request in (*self.running, *self.arriving) if request.state]
        if not holding:
            return []
        states = [request.state for request in holding if request.state]
        needs = self.cache.all_needed(states, [_reach(request, ahead) for request in holding])
        return [needs.sum(0).tolist()]


def _reach(request: Request, ahead: int) -> int:
    """The tokens that a request has, and `ahead` more, as far as it may go."""
    return min(len(request.prompt) + request.asked + ahead, request.max_tokens)


def _is_computed(request: Request) -> bool:
    """Return whether all its tokens are computed, once it took part in a step; a recomputed request always is."""
    return request.state is None or request.state.tokens == request.num_tokens


def _without(gone: Sequence[Request], requests: list[Request]) -> list[Request]:
    absent = set(gone)
    return [request for request in requests if request not in absent]
