"""The engine: requests in, token events out, one synchronous step at a time. It knows nothing of HTTP or of threads."""

import random
import time
from collections.abc import Callable, Sequence
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.checks import check_request
from thoughtbubbles.engine.completion import Completion, advance
from thoughtbubbles.engine.config import EngineConfig
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.device import current_device
from thoughtbubbles.engine.errors import EngineError, InvalidRequest
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import Request, TokenEvent
from thoughtbubbles.engine.runner import Runner
from thoughtbubbles.engine.sampler import draw_tokens, score_tokens
from thoughtbubbles.engine.sampling import finite_rows
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.engine.scheduler import Plan, Scheduler
from thoughtbubbles.engine.stats import EngineStats, StepReport
from thoughtbubbles.model import ModelConfig, Selection, Thoughtbubbles, Tokenizer

if TYPE_CHECKING:
    from thoughtbubbles.engine.cuda.decode_batch import DeviceBatch, Flight


class Engine:
    """Serves a model with continuous batching over a fork-state cache. Use it from one thread."""

    def __init__(self, model: Thoughtbubbles, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        """`ValueError` naming the setting when the model cannot be served within `config`."""
        self.config = config or EngineConfig()
        _require_scores(model.config)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_model_len = self.config.max_model_len or model.config.block_size
        self.cache = ForkCache(
            model.config,
            max_tokens=self.max_model_len,
            total_bytes=self.config.cache_bytes,
            page_size=self.config.page_size,
            like=model.transformer.wte.weight.detach(),
            requests=self.config.max_batch_size,
            retain=self.config.prefix_caching,
        )
        self.last_step: StepReport | None = None
        self._runner = Runner(model, self.cache, vocabulary=tokenizer.vocab_size)
        self.max_prefill_tokens = self.config.max_prefill_tokens or self._runner.max_prefill_tokens
        self.scheduler = Scheduler(self.config, self.cache, self.max_prefill_tokens)
        weight = model.transformer.wte.weight
        self._current = current_device(weight.device)
        with self._current:
            self._device = _device_batch(model, self.cache, self._runner.tally, vocabulary=tokenizer.vocab_size)
            if weight.is_cuda:
                from thoughtbubbles.engine.warmup import warm_up  # noqa: PLC0415 - where there are kernels to compile

                warm_up(self._runner, self.cache, tokenizer)
        self._flight: Flight | None = None
        """What the device has been asked for and nobody has been told of."""
        self._requests: dict[str, Request] = {}
        self._ended: list[Request] = []
        """Whose last event is told, and who have not been let go yet."""
        self._seeds = random.Random(self.config.seed)
        self._prompt_tokens = self._generation_tokens = self._stream_tokens = self._non_finite = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._requests)

    def add(self, request_id: str, prompt: Sequence[int], params: SamplingParams, *, client: str = "") -> None:
        """Queue a request of `client`, or of nobody in particular. Raises `InvalidRequest` naming the setting, or
        `QueueFull`.
        """
        if request_id in self._requests:
            raise InvalidRequest(f"a request {request_id!r} is already here", param="request_id")
        check_request(prompt, params, self.model.config, self.tokenizer.vocab_size, self.max_model_len)
        selection = Selection.of(self.model.config, params.fork_selection, params.fork_ratio)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        detokenizer = Detokenizer(self.tokenizer, params.stop, include_stop=params.include_stop)
        request = Request(request_id, tuple(prompt), params, selection, seed, detokenizer, client)
        if not self.cache.ever_fits(selection, request.max_tokens):
            raise InvalidRequest(
                "the forks of this request need more than the whole fork-state cache: ask for fewer tokens or a lower "
                "fork_ratio",
                param="fork_ratio",
            )
        self.scheduler.add(request)
        self._requests[request_id] = request
        self._prompt_tokens += len(prompt)

    def abort(self, *request_ids: str) -> list[str]:
        """Drop requests and free their pages at once; no event follows. Return the ids of those that were unfinished.

        The cost of each does not depend on how many wait, nor on its place among them.
        """
        present = [request_id for request_id in dict.fromkeys(request_ids) if request_id in self._requests]
        if present:
            self.scheduler.remove([self._requests.pop(request_id) for request_id in present])
        return present

    def step(self) -> list[TokenEvent]:
        """Schedule, compute, sample, tell: at most one event for each request that runs, and one for its prompt.

        A device decodes one step ahead: what is told then is of the step before, and nothing the first time.
        """
        with self._current:
            return self._step()

    def _step(self) -> list[TokenEvent]:
        start = time.monotonic()
        plan = self.scheduler.schedule()
        if plan.phase == "prefill":
            for request in plan.requests:
                request.started = request.started or start
        if plan.phase == "decode" and self._device:
            events, counts = self._decode_ahead(self._device, plan)
        elif plan.phase == "prefill" and self._device:
            events, counts = self._take_in(self._device, plan)
        else:
            events, counts = self._compute(plan)
        if plan.requests or events:
            self._note(plan, counts, time.monotonic() - start)
        return events

    def _compute(self, plan: Plan, meanwhile: Callable[[], None] | None = None) -> tuple[list[TokenEvent], list[int]]:
        """A step that is waited for: its events, and the streams of each token that was computed."""
        if not plan.requests:
            return [], []
        output = self._runner.step(plan.requests, plan.tokens, meanwhile)
        self.scheduler.settle(plan.requests)
        events = self._end_broken(plan.requests, output.finite)
        running = set(self.scheduler.running)  # a prompt of which this was a chunk, but not the last, stays out
        complete = [i for i, request in enumerate(plan.requests) if request in running]
        last_counts = [output.fork_counts[i][-1] for i in complete]
        events += self._settle([plan.requests[i] for i in complete], last_counts)
        going = [i for i in complete if plan.requests[i].id in self._requests]
        for i in going:
            plan.requests[i].asked += 1
        requests = [plan.requests[i] for i in going]
        if output.drawn and all(request.draws_alone for request in requests):
            events += self._tell(requests, [output.drawn[i] for i in going], [None] * len(going))
        else:
            logits = output.logits if len(going) == len(plan.requests) else output.logits[going]
            events += self._continue(requests, logits)
        return events, [count for counts in output.fork_counts for count in counts]

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        """Complete prompts, as many at a time as fit. The engine must be idle. Raises like `add`."""
        assert not self.has_work, "generate is for an engine that does nothing else"
        try:
            for i, prompt in enumerate(prompts):
                self.add(str(i), prompt, params)
        except EngineError:
            self.abort_all()
            raise
        events: dict[str, list[TokenEvent]] = {str(i): [] for i in range(len(prompts))}
        while self.has_work:
            for event in self.step():
                events[event.request_id].append(event)
        return [Completion.of(told) for told in events.values()]

    def abort_all(self) -> None:
        """Drop every request."""
        self.scheduler.remove(list(self._requests.values()))
        self._requests.clear()

    def stats(self) -> EngineStats:
        """The engine's numbers now."""
        use, tally = self.cache.use(), self._runner.tally
        return EngineStats(
            num_requests_running=len(self.scheduler.running) + len(self.scheduler.arriving),
            num_requests_waiting=len(self.scheduler.waiting),
            num_streams_waiting=self.scheduler.waiting.streams,
            cache_streams=use.streams,
            cache_bytes=use.bytes,
            cache_usage_ratio=use.ratio,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
            stream_tokens_total=self._stream_tokens,
            admitted_streams_total=self.scheduler.waiting.taken_streams,
            non_finite_logits_total=self._non_finite,
            preemptions_total=self.scheduler.preemptions,
            prefix_cache_queries_total=self.scheduler.prefix_queries,
            prefix_cache_hits_total=self.scheduler.prefix_hits,
            forks_total=dict(tally.forks),
            fork_deletions_total=dict(tally.deletions),
        )

    def _decode_ahead(self, device: "DeviceBatch", plan: Plan) -> tuple[list[TokenEvent], list[int]]:
        """Ask the device for a step, and tell of the one before; those it cannot serve get theirs the other way."""
        others = [request for request in plan.requests if not request.cached]
        events, counts = self._compute(Plan("decode", others, [1] * len(others)))
        requests = [request for request in plan.requests if request.cached and request.asked < request.most]
        drawing = all(request.draws_alone for request in requests)
        before, self._flight = self._flight, None
        if before and not drawing:  # the host draws, and for that must know the last token
            landed, streams = self._land(device, before)
            events, counts, before = events + landed, counts + streams, None
            requests = [request for request in requests if request.state and request.asked < request.most]
        asked = device.launch(requests, drawing=drawing) if requests else None
        for flight in (before, asked if not drawing else None):
            if flight:
                landed, streams = self._land(device, flight)
                events, counts = events + landed, counts + streams
        self._flight = asked if drawing else None
        return events, counts

    def _take_in(self, device: "DeviceBatch", plan: Plan) -> tuple[list[TokenEvent], list[int]]:
        """Take in prompts, and before they are waited for ask for a step of those who run, that the device never idles.

        Meanwhile see to what comes next. The scheduler has seen to it that there are pages for both. Where the device
        cannot serve all, they take turns.
        """
        running = [request for request in self.scheduler.running if request.asked < request.most]
        if not all(r.cached and r.draws_alone for r in running) or not all(r.cached for r in plan.requests):
            return self._compute(plan)
        events: list[TokenEvent] = []
        counts: list[int] = []

        def go_on() -> None:
            before, self._flight = self._flight, device.launch(running, drawing=True) if running else None
            self.scheduler.go_on()
            if before:
                landed, streams = self._land(device, before)
                events.extend(landed)
                counts.extend(streams)
            self.scheduler.admit()

        taken_in, streams = self._compute(plan, go_on)
        return events + taken_in, counts + streams

    def _land(self, device: "DeviceBatch", flight: "Flight") -> tuple[list[TokenEvent], list[int]]:
        """Wait for a step of the device and tell of it, but for those who have gone since."""
        drawn, ends = device.land(flight)
        here = np.flatnonzero(self.cache.ledger.opening[flight.lanes] == flight.openings)
        requests = [flight.requests[i] for i in here.tolist()]
        ids = [request.output[-1] for request in requests]
        counts = self.cache.append(flight.lanes[here], ids, ends[here]).tolist()
        for request, streams, count in zip(requests, ends[here, -1].tolist(), counts, strict=True):
            request.count(streams, count)
        finite = (drawn[here] >= 0).tolist() if flight.drawn else finite_rows(flight.logits[here.tolist()])
        events = self._end_broken(requests, finite)
        left = [i for i, request in enumerate(requests) if request.state]
        events += self._settle([requests[i] for i in left], [counts[i] for i in left])
        if events:  # some of which may have been their requests' last
            here = here[[request.state is not None for request in requests]]
            requests = [request for request in requests if request.state]
        if flight.drawn:
            return events + self._tell(requests, drawn[here].tolist(), [None] * len(here)), counts
        return events + self._continue(requests, flight.logits[here.tolist()]), counts

    def _end_broken(self, requests: list[Request], finite: list[bool]) -> list[TokenEvent]:
        """End the requests whose logits are not finite, and return their last events, which have no usage.

        Nothing that was computed of them is left for others.
        """
        events: list[TokenEvent] = []
        if all(finite):
            return events
        for request in compress(requests, map(not_, finite)):
            if request.state:
                request.state.spoilt = True
            events.append(TokenEvent(request.id, None, finish_reason="error"))
            self._ended.append(request)
        self._non_finite += len(events)
        self._runner.clear_room()
        self._let_go()
        return events

    def _settle(self, requests: list[Request], fork_counts: list[int]) -> list[TokenEvent]:
        """Return the events that waited for this step: tokens whose streams are known now, and prompts only scored.

        All tokens of these requests are computed, and `fork_counts` are the streams of each one's last.
        """
        events = []
        for request, count in zip(requests, fork_counts, strict=True):
            if request.held:
                event, request.held = request.held._replace(fork_count=count), None
                events.append(self._close(request, event))
            elif request.params.max_tokens == 0:
                event = TokenEvent(request.id, None, prompt=request.prompt_report, finish_reason="length")
                events.append(self._close(request, event))
        self._let_go()
        return events

    def _continue(self, requests: list[Request], logits: Tensor) -> list[TokenEvent]:
        """Draw a token for each request, from logits (R,V), and tell of it."""
        if not requests:
            return []
        logits = logits.float()
        tokens = draw_tokens(requests, logits, self.tokenizer)
        return self._tell(requests, tokens, score_tokens(requests, logits, tokens, self.tokenizer))

    def _tell(self, requests: list[Request], tokens: list[int], scores: Sequence[Scored | None]) -> list[TokenEvent]:
        """Give each request its token; the events that can be told at once."""
        events, now = [], time.monotonic()
        for request, token, scored in zip(requests, tokens, scores, strict=True):
            event = advance(request, token, scored, self.tokenizer.end_of_text)
            if request.first_token is None:
                request.first_token = now
            if request.params.return_fork_counts:
                request.hold(event)
            else:
                events.append(event if event.finish_reason is None else self._close(request, event))
        self._generation_tokens += len(requests)
        self._let_go()
        return events

    def _close(self, request: Request, event: TokenEvent) -> TokenEvent:
        """Have a request's last event tell its usage, and the request let go with others that end in the same step."""
        if event.finish_reason is None:
            return event
        self._ended.append(request)
        return event._replace(usage=request.usage())

    def _let_go(self) -> None:
        if self._ended:
            self.scheduler.remove(self._ended)
            for request in self._ended:
                del self._requests[request.id]
            self._ended.clear()

    def _note(self, plan: Plan, counts: list[int], seconds: float) -> None:
        self._stream_tokens += sum(counts)
        self.last_step = StepReport(
            phase=plan.phase, seconds=seconds, batch_size=len(plan.requests), fork_counts=tuple(counts)
        )


def _device_batch(
    model: Thoughtbubbles, cache: ForkCache, tally: ForkTally, *, vocabulary: int
) -> "DeviceBatch | None":
    """What decodes ahead, on a device and for models that have kernels for it."""
    if model.transformer.wte.weight.device.type != "cuda":
        return None
    from thoughtbubbles.engine.cuda.decode import decodes_alone  # noqa: PLC0415 - Triton is there only where a device is
    from thoughtbubbles.engine.cuda.decode_batch import DeviceBatch  # noqa: PLC0415

    if not decodes_alone(model.config):
        return None
    return DeviceBatch(model, cache, tally, vocabulary=vocabulary)


def _require_scores(config: ModelConfig) -> None:
    """Raise `ValueError` for a model whose survivors are not chosen by score: the cache stores scores and no more."""
    if config.select_by != "score":
        raise ValueError(
            f"select_by is {config.select_by!r}: only models with select_by 'score' can be served; evaluate this one"
            " with `thoughtbubbles evaluate`"
        )
