"""Continuous batching: what the next step computes. Requests join and leave between any two steps. No torch here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, islice
from operator import add

from thoughtbubbles.engine.batch import Plan
from thoughtbubbles.engine.cache.fork_cache import ForkCache, Prefix
from thoughtbubbles.engine.cache.prefix_index import BLOCK
from thoughtbubbles.engine.config import EngineConfig
from thoughtbubbles.engine.errors import ClientQueueFull, QueueFull
from thoughtbubbles.engine.lookup import GUESSING, Guessing
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.request_queue import RequestQueue


@dataclass
class Scheduler:
    """Waiting → prefilling → running → finished; first come, first served; the last to come is preempted first."""

    config: EngineConfig
    cache: ForkCache
    max_prefill_tokens: int
    """Most prompt tokens of a step, and most guesses."""
    mixes: bool = False
    """Whether one step may prefill some requests and decode others."""
    max_lone_prefill_tokens: int = 0
    """Most prompt tokens of a step while no request decodes, if that is more."""
    part_tokens: int = 0
    """Most prompt tokens of the first part of a step in two parts, unless a prompt has more; 0 if no step has two."""
    guessing: Guessing = GUESSING
    """Which guesses pay."""
    waiting: RequestQueue = field(init=False)
    prefilling: list[Request] = field(default_factory=list)
    """Admitted requests whose tokens are not all computed yet."""
    running: list[Request] = field(default_factory=list)
    """Requests that decode."""
    paused: bool = False
    """Whether requests of groups that have not started stay in the queue, until the others have finished."""
    prompt_tokens: int = 0
    """Tokens of the prompts of all requests that have started."""
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    _decode_next: bool = False
    """Whether the last step prefilled and left out running requests, so that the next one decodes."""
    _num_unplanned: int = 0
    """Prompt tokens of prefilling requests with pages that no plan has so far."""
    _first_part: dict[Request, int] | None = None
    """The chunks of the first part of the present step; None unless a second part is still to be planned."""

    def __post_init__(self) -> None:
        self.waiting = RequestQueue(self.cache.config)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises `QueueFull` if the waiting requests would need more than `max_waiting_streams` streams with it, and
        `ClientQueueFull` if those of its client would need more than `max_client_share` allows when complete.
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
        """Return the next plan: a chunk of what is prefilling, or a token for every running request.

        A long prompt is prefilled in chunks of `max_prefill_tokens`. If the steps are not mixed, running requests
        decode between two of them.
        """
        self._free_pages()
        self._num_unplanned = sum(request.num_pending for request in self.prefilling if request.paged)
        self._first_part, divided = None, self._divides()
        part = self.part_tokens if divided else self._most_tokens
        self.admit(part)
        if not self.prefilling or (self.running and self._decode_next):
            self._decode_next = False
            return self._plan_decode(self.running)
        beside = [request for request in self.running if request.paged] if self.mixes else []
        self._decode_next = not self.mixes or len(beside) < len(self.running)
        chunks = self._first_chunks(part)
        if divided:
            self._first_part = chunks
        return self._plan_prefill(chunks, self._plan_decode(beside))

    def schedule_rest(self) -> Plan | None:
        """Return the plan of the second part of the step, once the first is launched; None if it has no second part.

        So the device computes a few of many prompts while the others are admitted and prepared, and the others while
        those few are reported.
        """
        first, self._first_part = self._first_part, None
        if first is None or not (left := self._most_tokens - sum(first.values())):
            return None
        self.admit(left)
        chunks = self._some_chunks([each for each in self.prefilling if each not in first], left, left)
        return replace(self._plan_prefill(chunks, Plan([], [])), continues=True) if chunks else None

    def admit(self, most: int | None = None) -> None:
        """Admit waiting requests while batch slots and pages last, of those with pages as many as have `most` tokens.

        None: as many as a step could prefill. `schedule` does so; an engine whose executor runs ahead may do so before,
        while a step is computed.
        """
        if not self._may_admit:
            return
        most = self._most_tokens if most is None else most
        needs = self._needs(ahead=1)
        while self._may_admit:
            request = self.waiting.first
            prefix = self._find(request)
            cached = prefix.state.tokens if prefix else 0
            tokens = self._num_unplanned + request.num_tokens - cached
            full = tokens > most and any(each.paged for each in self.prefilling)
            if request.paged and (full or self._gains_by_waiting(request, cached)):
                return
            if not self._open(request, prefix, needs):
                return
            self.prefilling.append(self.waiting.popleft())
            request.group.started = True
            if request.paged:
                self._num_unplanned += request.num_pending

    def update(self, requests: Sequence[Request]) -> None:
        """Move requests of an output to `running` if all their tokens are computed now."""
        if not self.prefilling:
            return
        landed = set(requests)
        computed = [request for request in self.prefilling if request in landed and request.is_computed]
        self.running += computed
        self.prefilling = _without(computed, self.prefilling)

    def remove(self, requests: Sequence[Request]) -> None:
        """Remove finished or aborted requests; their pages are free at once."""
        for request in set(requests).difference(self.running, self.prefilling):
            self.waiting.remove(request)
        self.running, self.prefilling = _without(requests, self.running), _without(requests, self.prefilling)
        self.cache.close([request.state for request in requests if request.state])
        for request in requests:
            request.state = None
            request.num_scheduled = len(request.output)  # a step that runs ahead is computed for nothing

    def _plan_decode(self, requests: list[Request]) -> Plan:
        """Plan the next token of each of these running requests, unless their last one is scheduled already."""
        left_out = self._draft(requests) if self.config.speculate and requests else set()
        num_tokens: list[int] = []
        for request in requests:
            if not request.paged:  # planned again until it is computed, which may take several steps
                request.num_scheduled = len(request.output)
            tokens = len(request.draft)
            if request.num_scheduled < request.max_scheduled and not (left_out and request in left_out):
                tokens += 1
            request.num_scheduled += tokens
            num_tokens.append(tokens)
        return Plan(list(requests), num_tokens)

    def _draft(self, requests: Sequence[Request]) -> set[Request]:
        """Guess tokens of running requests, if that pays and pages are left; nothing is preempted for a guess.

        Returns those with a guess whose newest token is in flight. They have to be left out of this step: once that
        token is known, it will be known too whether the guess is right so far.
        """
        limit, left = self.guessing.limit(len(requests)), self.max_prefill_tokens
        if limit < self.guessing.least:
            return set()
        for request in requests:
            if request.lookup and request.draws:
                most = min(request.most_guesses, left, limit)
                request.draft = request.lookup.guess(request.prompt, request.output, most)
                left -= len(request.draft)
        guesses = self.max_prefill_tokens - left
        if not guesses:
            return set()
        fits = guesses >= self.guessing.least_together * len(requests) and self.cache.make_room(self._needs())
        left_out = {request for request in requests if request.draft and request.in_flight}
        for request in left_out if fits else requests:
            request.draft = []
        return left_out if fits else set()

    def _divides(self) -> bool:
        """Return whether the next step has two parts: if there are enough prompt tokens for both, and none decodes.

        Prompts that are reported stay in one part: what two parts would gain there has not been measured. Requests
        without pages are planned with all others.
        """
        if not self.part_tokens or self.running or self._most_tokens < 2 * self.part_tokens:
            return False
        candidates = [*islice(chain(self.prefilling, self.waiting), self.config.max_batch_size)]
        if any(request.wants_prompt_report or not request.paged for request in candidates):
            return False
        return any(n >= 2 * self.part_tokens for n in accumulate(request.num_pending for request in candidates))

    def _plan_prefill(self, chunks: dict[Request, int], beside: Plan) -> Plan:
        """Plan these chunks of prefilling requests, and what is decoded beside them."""
        now = time.monotonic()
        for request, chunk in chunks.items():
            if request.started is None:
                request.started = now
                self.prompt_tokens += len(request.prompt)
            request.num_scheduled = len(request.output) + (chunk == request.num_pending)
            if request.paged:
                self._num_unplanned -= chunk
        return Plan([*chunks, *beside.requests], [*chunks.values(), *beside.num_tokens], len(chunks))

    def _first_chunks(self, part: int) -> dict[Request, int]:
        """Return the next chunks of prefilling requests, in their order, with at most `part` tokens if it has several.

        Requests without pages are computed apart from the others, in pieces of the same size: one of either kind does
        not wait for one of the other.
        """
        most = self._most_tokens
        paged, others = ([each for each in self.prefilling if each.paged == kind] for kind in (True, False))
        first = self._some_chunks(paged, most, part) | self._some_chunks(others, most, most)
        return {request: first[request] for request in self.prefilling if request in first}

    def _some_chunks(self, requests: Sequence[Request], left: int, part: int) -> dict[Request, int]:
        """Return the next tokens of the first of these requests.

        They are at most `left`, but of a prompt that is computed whole, and at most `part` if of several requests.
        """
        chunks: dict[Request, int] = {}
        for request in requests:
            pending = request.num_pending
            chunk = pending if pending <= left or self._is_whole(request) else left
            if chunks and (chunk > min(left, part) or left == 0):
                break
            chunks[request] = chunk
            left, part = max(0, left - chunk), part - chunk
        return chunks

    @property
    def _most_tokens(self) -> int:
        """Most prompt tokens of the next step."""
        return self.max_prefill_tokens if self.running else max(self.max_prefill_tokens, self.max_lone_prefill_tokens)

    def _is_whole(self, request: Request) -> bool:
        """Return whether its prompt is prefilled in one step, as a report of it and requests without pages need."""
        return not request.paged or request.wants_prompt_report

    @property
    def drained(self) -> bool:
        """Whether no request is unfinished whose group has started. Those that wait again are at the head."""
        return not self.running and not self.prefilling and not (self.waiting and self.waiting.first.group.started)

    @property
    def _may_admit(self) -> bool:
        if not self.waiting or (self.paused and not self.waiting.first.group.started):
            return False
        return len(self.running) + len(self.prefilling) < self.config.max_batch_size

    def _find(self, request: Request) -> Prefix | None:
        """Return the longest cached prefix of its tokens, without the last one, whose logits have to be computed."""
        return self.cache.find(request.selection, request.tokens[:-1]) if self._shares(request) else None

    def _gains_by_waiting(self, request: Request, cached: int) -> bool:
        """Return whether it could soon start from a prefix that is prefilling, as the choices of one prompt can."""
        if not self._shares(request):
            return False
        enough = cached + BLOCK
        if enough >= request.num_tokens:  # the last is computed in any case
            return False
        ours = request.first(enough)
        others = (other for other in self.prefilling if other.prompt[0] == ours[0])  # few, where prompts begin apart
        return any(
            other.paged and other.selection == request.selection and other.first(enough) == ours for other in others
        )

    def _shares(self, request: Request) -> bool:
        """Return whether it may start from a cached prefix. A report of its prompt needs every token computed."""
        return self.config.prefix_caching and request.paged and not request.wants_prompt_report

    def _open(self, request: Request, found: Prefix | None, needs: list[Sequence[int]]) -> bool:
        """Open the state of a request, from a prefix or, if that needs too many pages, empty; return whether it fits.

        Adds the pages that it may need to those of the others, `needs`.
        """
        if not request.paged:
            return True
        reach = _reach(request, ahead=1 if needs else 0)
        for prefix in (found, None) if found else (None,):
            need = self.cache.pages_needed(request.selection, reach, prefix.state if prefix else None)
            total = [list(map(add, needs[0], need))] if needs else [need]
            if self.cache.make_room(total, keep=prefix):
                request.state = self.cache.open(request.selection, prefix)
                self._count(request, request.state.tokens)
                needs[:] = total
                return True
        return False

    def _count(self, request: Request, cached: int) -> None:
        if self._shares(request):
            self.prefix_queries += request.num_tokens
            self.prefix_hits += cached
        if request.cached_tokens is None:
            request.cached_tokens = cached

    def _free_pages(self) -> None:
        """Evict prefixes, and then preempt, until all admitted requests can compute the tokens they have.

        The last to come that has pages is preempted by recomputation: it later starts again with the tokens it has.
        """
        while not self.cache.make_room(self._present_needs()):
            victim = [each for each in (*self.running, *self.prefilling) if each.paged][-1]
            self.remove([victim])
            self.waiting.appendleft(victim)
            self.preemptions += 1

    def _present_needs(self) -> list[Sequence[int]]:
        """Return the pages needed for the tokens that requests have: a quick upper bound if it fits, else exactly."""
        bound = self.cache.most_needed(len(self.running))
        return [bound] if not self.prefilling and self.cache.fits([bound]) else self._needs()

    def _needs(self, ahead: int = 0) -> list[Sequence[int]]:
        """Return the pages that admitted requests may need for `ahead` more tokens, summed; [] if none has pages."""
        admitted = [request for request in (*self.running, *self.prefilling) if request.state]
        if not admitted:
            return []
        states = [request.state for request in admitted if request.state]
        needs = self.cache.all_needed(states, [_reach(request, ahead) for request in admitted])
        return [needs.sum(0).tolist()]


def _reach(request: Request, ahead: int) -> int:
    """Return the tokens that a request has, also scheduled and guessed, and `ahead` more, at most `max_tokens`."""
    return min(len(request.prompt) + request.num_scheduled + len(request.draft) + ahead, request.max_tokens)


def _without(removed: Sequence[Request], requests: list[Request]) -> list[Request]:
    absent = set(removed)
    return [request for request in requests if request not in absent]
