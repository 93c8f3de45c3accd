"""The engine: requests in, token events out, one synchronous step at a time. It knows nothing of HTTP or of threads."""

import random
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from thoughtbubbles.engine.batch import Output, Phase, Row
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.checks import check_request
from thoughtbubbles.engine.completion import Completion, advance, fail
from thoughtbubbles.engine.config import EngineConfig
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.device import current_device, make_executor
from thoughtbubbles.engine.errors import EngineError, InvalidRequest
from thoughtbubbles.engine.lookup import Lookup
from thoughtbubbles.engine.prompts import Array, Prompt, batch_token_ids, token_ids
from thoughtbubbles.engine.request import Group, Request, TokenEvent
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.engine.scheduler import Scheduler
from thoughtbubbles.engine.stats import EngineStats, StepReport
from thoughtbubbles.engine.structured.compiler import compiler_of
from thoughtbubbles.engine.transfer import exchanged
from thoughtbubbles.model import ModelConfig, Selection, Thoughtbubbles, Tokenizer

FLOAT8_CAPABILITY = (8, 9)
"""The lowest compute capability of CUDA devices that convert 8-bit floats."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "float8": torch.float8_e4m3fn}


class Engine:
    """Serves a model with continuous batching over a fork-state cache. To be used from one thread."""

    def __init__(self, model: Thoughtbubbles, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        """Raise `ValueError` naming the setting if the model cannot be served within `config`."""
        self.config = config or EngineConfig()
        _require_servable(model.config)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_model_len = self.config.max_model_len or model.config.block_size
        self.cache = ForkCache(
            model.config,
            max_tokens=self.max_model_len,
            total_bytes=self.config.cache_bytes,
            page_size=self.config.page_size,
            like=_like(model, self.config),
            requests=self.config.max_batch_size,
            retain=self.config.prefix_caching,
        )
        self.last_step: StepReport | None = None
        """The report of the last step; None if it computed nothing."""
        self._current = current_device(model.transformer.wte.weight.device)
        with self._current:
            self.executor = make_executor(model, self.cache, tokenizer, self.config)
        self.max_prefill_tokens = self.executor.max_prefill_tokens
        self.scheduler = Scheduler(
            self.config, self.cache, self.max_prefill_tokens, mixes=self.executor.mixes,
            max_lone_prefill_tokens=self.executor.max_lone_prefill_tokens, part_tokens=self.executor.part_tokens,
            guessing=self.executor.guessing,
        )  # fmt: skip
        self._requests: dict[str, Request] = {}
        self._seeds = random.Random(self.config.seed)
        self._generation_tokens = self._stream_tokens = self._non_finite = 0
        self._integrity_checks = self._integrity_failures = 0
        self._proposed = self._accepted = 0

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._requests)

    def add(
        self, request_id: str, prompt: Prompt, params: SamplingParams, *, client: str = "", group: Group | None = None
    ) -> None:
        """Queue a request of `client`, or of no client, for a text or token ids.

        The requests of a `group`, which are added one after the other, are computed with the same weights. Raises
        `InvalidRequest` naming the setting, or `QueueFull`.
        """
        if request_id in self._requests:
            raise InvalidRequest(f"request_id {request_id!r} is in use already", param="request_id")
        ids = token_ids(prompt, self.tokenizer)
        check_request(ids, params, self.model.config, self.tokenizer.vocab_size, self.max_model_len)
        selection = Selection.of(self.model.config, params.fork_selection, params.fork_ratio)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        detokenizer = Detokenizer(self.tokenizer, params.stop, include_stop=params.include_stop)
        grammar = None if params.grammar is None else compiler_of(self.tokenizer).start(params.grammar)
        request = Request(
            request_id, ids, params, selection, seed, detokenizer, client, group or Group(), grammar=grammar
        )
        if self.config.speculate and request.paged and grammar is None:  # a guess would need a mask of its own
            request.lookup = Lookup(self.config.speculate, self.scheduler.guessing)
        if not self.cache.ever_fits(selection, request.max_tokens):
            raise InvalidRequest(
                "the forks of this request need more than the whole fork-state cache: ask for fewer tokens or a lower "
                "fork_ratio",
                param="fork_ratio",
            )
        self.scheduler.add(request)
        self._requests[request_id] = request

    def abort(self, *request_ids: str) -> list[str]:
        """Drop requests and free their pages at once; no event follows. Return the ids of those that were unfinished.

        The cost of each does not depend on the length of the queue.
        """
        present = [request_id for request_id in dict.fromkeys(request_ids) if request_id in self._requests]
        self._release(present)
        return present

    def step(self) -> list[TokenEvent]:
        """Schedule a step, compute it, and return the events of its tokens.

        If the executor runs ahead, what a step decodes is reported by the next one.
        """
        with self._current:
            return self._step()

    def _step(self) -> list[TokenEvent]:
        start, self.last_step = time.monotonic(), None
        plan = self.scheduler.schedule()
        flights = self.executor.launch(plan)
        rest = self.scheduler.schedule_rest()
        if rest:
            flights += self.executor.launch(rest)
        if self.executor.runs_ahead:
            self.scheduler.admit()  # while the device computes
        events: list[TokenEvent] = []
        fork_counts: list[int] = []
        for flight in flights:
            output = self.executor.land(flight)
            events += self._report(output)
            fork_counts += output.step_fork_counts
        if plan.requests or events:
            requests = (plan.num_prefills or len(plan.requests)) + (rest.num_prefills if rest else 0)
            self._record(plan.phase, requests, fork_counts, time.monotonic() - start)
        return events

    def _report(self, output: Output) -> list[TokenEvent]:
        """Apply an output to its requests. Return their events, failures first, and release the requests that end."""
        self.scheduler.update(output.requests)
        failures: list[TokenEvent] = []
        events: list[TokenEvent] = []
        now, end_of_text, tokens = time.monotonic(), self.tokenizer.end_of_text, 0
        drafts: dict[Request, list[Row]] = {}
        for request, row in output.rows():
            if request.draft:
                drafts.setdefault(request, []).append(row)
            elif row.finite and (row.token is not None or not _lacks_token(request)):
                advance(request, row, now, end_of_text, events)
                tokens += row.token is not None
            else:
                failures += self._fail(request, row)
        self._generation_tokens += tokens
        for request, rows in drafts.items():
            events += self._check_draft(request, rows, now)
        events = failures + events
        self._release([event.request_id for event in events if event.finish_reason is not None])
        return events

    def _check_draft(self, request: Request, rows: Sequence[Row], now: float) -> list[TokenEvent]:
        """Take the tokens drawn in the place of guesses, and the one after, up to the first that was not guessed.

        Removes the guesses from there on, and their streams. If a row is NaN or infinite, a later guess may be why: the
        next step computes that token without guesses.
        """
        assert request.state, "guesses are checked over the cache"
        events: list[TokenEvent] = []
        draft, accepted = request.draft, 0
        for row, guess in zip_longest(rows, draft):
            if not row.finite:
                request.lookup = None
                break
            advance(request, row, now, self.tokenizer.end_of_text, events)
            self._generation_tokens += row.token is not None
            accepted += row.token == guess
            if row.token != guess or not request.draws:
                break
        if request.lookup:
            request.lookup.learn(accepted)
        request.drop_draft()
        self.cache.keep(request.state, request.num_tokens - 1)
        self._proposed += len(draft)
        self._accepted += accepted
        return events

    def _fail(self, request: Request, row: Row) -> list[TokenEvent]:
        """Return the last events of a request for which no token can be drawn: what it still has, and the error.

        Nothing is left for others of one whose logits are NaN or infinite.
        """
        if row.finite:
            assert request.grammar is not None, "only a grammar keeps a token from being drawn"
            return fail(request, row, request.grammar.failure)
        if request.state:
            request.state.spoilt = True
        self._non_finite += 1
        return fail(request, None, None)

    def _release(self, request_ids: Sequence[str]) -> None:
        """Forget requests and free their pages."""
        if request_ids:
            requests = [self._requests.pop(request_id) for request_id in request_ids]
            self.scheduler.remove(requests)
            self.executor.release(requests)

    def _record(self, phase: Phase, batch_size: int, fork_counts: list[int], seconds: float) -> None:
        self._stream_tokens += sum(fork_counts)
        self.last_step = StepReport(phase=phase, seconds=seconds, batch_size=batch_size, fork_counts=tuple(fork_counts))

    def generate(self, prompts: Sequence[Prompt] | Array, params: SamplingParams) -> list[Completion]:
        """Return the completions of prompts, each a text or token ids, computed together if they fit.

        Needs an idle engine. Raises as `add`.
        """
        assert not self.has_work, "generate needs an idle engine"
        ids = batch_token_ids(prompts, self.tokenizer)
        try:
            for i, prompt in enumerate(ids):
                self.add(str(i), prompt, params)
        except EngineError:
            self.abort_all()
            raise
        events: dict[str, list[TokenEvent]] = {str(i): [] for i in range(len(ids))}
        while self.has_work:
            for event in self.step():
                events[event.request_id].append(event)
        return [Completion.of(each) for each in events.values()]

    def abort_all(self) -> None:
        """Drop every request."""
        self._release(list(self._requests))

    def pause_admission(self) -> None:
        """Start no request until `resume_admission`, except those of groups that have started, which go on."""
        self.scheduler.paused = True

    def resume_admission(self) -> None:
        """Start waiting requests again."""
        self.scheduler.paused = False

    @property
    def drained(self) -> bool:
        """Whether no request is unfinished whose group has started, so that the weights may be replaced."""
        return self.scheduler.drained

    def replace_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights from now on, and forget all cached prefixes. Needs a `drained` engine.

        `weights` are the tensors of the model's `state_dict()`, in its dtype, on any device. They are copied into the
        model's own tensors, whose addresses stay, and then hold the values from before. Whatever is raised, the engine
        goes on with the weights from before.
        """
        assert self.drained, "requests that have started end with the weights they started with"
        with self._current, torch.inference_mode():
            with exchanged(self.model.state_dict(), weights):
                self.executor.read_weights()
            self.cache.clear()

    def check_integrity(self) -> str | None:
        """Check the page counts of the fork-state cache. Return what is wrong, or None; `stats` counts both."""
        self._integrity_checks += 1
        try:
            self.cache.check_integrity()
        except AssertionError as failure:
            self._integrity_failures += 1
            return str(failure)
        return None

    def stats(self) -> EngineStats:
        """Return the engine's numbers now."""
        use, tally = self.cache.use(), self.executor.tally
        return EngineStats(
            num_requests_running=len(self.scheduler.running) + len(self.scheduler.prefilling),
            num_requests_waiting=len(self.scheduler.waiting),
            num_streams_waiting=self.scheduler.waiting.streams,
            cache_streams=use.streams,
            cache_bytes=use.bytes,
            cache_usage_ratio=use.ratio,
            prompt_tokens_total=self.scheduler.prompt_tokens,
            generation_tokens_total=self._generation_tokens,
            stream_tokens_total=self._stream_tokens,
            admitted_streams_total=self.scheduler.waiting.admitted_streams,
            non_finite_logits_total=self._non_finite,
            cache_integrity_checks_total=self._integrity_checks,
            cache_integrity_failures_total=self._integrity_failures,
            speculation_proposed_tokens_total=self._proposed,
            speculation_accepted_tokens_total=self._accepted,
            preemptions_total=self.scheduler.preemptions,
            prefix_cache_queries_total=self.scheduler.prefix_queries,
            prefix_cache_hits_total=self.scheduler.prefix_hits,
            forks_total=dict(tally.forks),
            fork_deletions_total=dict(tally.deletions),
        )


def _lacks_token(request: Request) -> bool:
    """Return whether a token should have been drawn, if none was: then the request's grammar has failed."""
    return request.draws and request.is_computed


def _like(model: Thoughtbubbles, config: EngineConfig) -> Tensor:
    """Return a tensor of the device and type that the cache stores keys and values in."""
    weight = model.transformer.wte.weight.detach()
    if config.cache_dtype is None or config.cache_dtype == str(weight.dtype).removeprefix("torch."):
        return weight
    if config.cache_dtype == "float8":
        _require_float8(weight.device)
    elif weight.is_cuda:
        allowed = f"that of the model or float8 on {weight.device}"
        raise ValueError(f"cache_dtype must be {allowed}, not {config.cache_dtype!r}")
    return weight.new_empty(0, dtype=_DTYPES[config.cache_dtype])


def _require_float8(device: torch.device) -> None:
    """Raise `ValueError` if the device has no instructions for 8-bit floats."""
    if device.type != "cuda":
        raise ValueError(f"cache_dtype 'float8' needs a CUDA device, not {device}: float16 takes half the memory there")
    capability = torch.cuda.get_device_capability(device)
    if capability < FLOAT8_CAPABILITY:
        needed, found = (".".join(map(str, each)) for each in (FLOAT8_CAPABILITY, capability))
        raise ValueError(f"cache_dtype 'float8' needs compute capability {needed}, and {device} has {found}")


def _require_servable(config: ModelConfig) -> None:
    """Raise `ValueError` for a looped model, and for one whose survivors are not selected by score.

    The cache stores the keys and values of each layer once, and the scores of candidates alone.
    """
    if config.loops > 1:
        raise ValueError(
            f"loops is {config.loops}: only models whose layers run once can be served; evaluate this one with"
            " `thoughtbubbles evaluate`"
        )
    if config.select_by != "score":
        raise ValueError(
            f"select_by is {config.select_by!r}: only models with select_by 'score' can be served; evaluate this one"
            " with `thoughtbubbles evaluate`"
        )
