"""The engine: requests in, token events out, one synchronous step at a time. It knows nothing of HTTP or of threads."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.checks import check_request
from engine.completion import advance, banned
from engine.config import EngineConfig
from engine.detokenizer import Detokenizer
from engine.errors import EngineError, InvalidRequest
from engine.fork_cache import ForkCache
from engine.prompt_report import Scored
from engine.request import FinishReason, Request, TokenEvent
from engine.runner import Runner, StepOutput
from engine.sampling import Draw, ban, penalise, sample
from engine.sampling_params import SamplingParams
from engine.scheduler import Plan, Scheduler
from engine.scoring import report
from engine.stats import EngineStats, StepReport
from model import Selection, Thoughtbubbles, Tokenizer


@dataclass(frozen=True)
class Completion:
    """A finished request of `Engine.generate`."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None
    events: tuple[TokenEvent, ...]
    """Everything that was told of it, log-probabilities included."""

    @classmethod
    def of(cls, events: list[TokenEvent]) -> "Completion":
        """The completion that these events, its last included, tell."""
        last = events[-1]
        assert last.finish_reason is not None, "the last event says why it is the last"
        ids = tuple(event.token_id for event in events if event.token_id is not None)
        return cls(ids, "".join(event.text for event in events), last.finish_reason, last.stop_reason, tuple(events))


class Engine:
    """Serves a model with continuous batching over a fork-state cache. Use it from one thread."""

    def __init__(self, model: Thoughtbubbles, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        """`ValueError` naming the setting when the model cannot be served within `config`."""
        self.config = config or EngineConfig()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_model_len = self.config.max_model_len or model.config.block_size
        self.cache = ForkCache(
            model.config,
            max_tokens=self.max_model_len,
            total_bytes=self.config.cache_bytes,
            page_size=self.config.page_size,
            like=model.transformer.wte.weight.detach(),
            retain=self.config.prefix_caching,
        )
        self.scheduler = Scheduler(self.config, self.cache)
        self.last_step: StepReport | None = None
        self._runner = Runner(model, self.cache)
        self._requests: dict[str, Request] = {}
        self._seeds = random.Random(self.config.seed)
        self._prompt_tokens = self._generation_tokens = self._stream_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._requests)

    def add(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> None:
        """Queue a request. Raises `InvalidRequest` naming the setting, or `QueueFull`."""
        if request_id in self._requests:
            raise InvalidRequest(f"a request {request_id!r} is already here", param="request_id")
        check_request(prompt, params, self.model.config, self.tokenizer.vocab_size, self.max_model_len)
        selection = Selection.of(self.model.config, params.fork_selection, params.fork_ratio)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        detokenizer = Detokenizer(self.tokenizer, params.stop, include_stop=params.include_stop)
        request = Request(request_id, tuple(prompt), params, selection, seed, detokenizer)
        if not self.cache.ever_fits(self.cache.pages_needed(selection, request.max_tokens)):
            raise InvalidRequest(
                "the forks of this request need more than the whole fork-state cache: ask for fewer tokens or a lower "
                "fork_ratio",
                param="fork_ratio",
            )
        self.scheduler.add(request)
        self._requests[request_id] = request
        self._prompt_tokens += len(prompt)

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its pages at once; no event follows. False when there is no such request."""
        request = self._requests.pop(request_id, None)
        if request:
            self.scheduler.remove(request)
        return request is not None

    def step(self) -> list[TokenEvent]:
        """Schedule, compute, sample, tell: at most one event for each request that runs."""
        plan = self.scheduler.schedule()
        if not plan.requests:
            return []
        start = time.monotonic()
        for request in plan.requests:
            request.started = request.started or start
        output = self._runner.step(plan.requests)
        events = self._settle(plan.requests, output)
        going = [i for i, request in enumerate(plan.requests) if request.id in self._requests]
        events += self._continue([plan.requests[i] for i in going], output.logits[going])
        self._note(plan, output, time.monotonic() - start)
        return events

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
        for request_id in list(self._requests):
            self.abort(request_id)

    def stats(self) -> EngineStats:
        """The engine's numbers now."""
        use, tally = self.cache.use(), self._runner.tally
        return EngineStats(
            num_requests_running=len(self.scheduler.running),
            num_requests_waiting=len(self.scheduler.waiting),
            num_streams_waiting=self.scheduler.waiting.streams,
            cache_streams=use.streams,
            cache_bytes=use.bytes,
            cache_usage_ratio=use.ratio,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
            stream_tokens_total=self._stream_tokens,
            admitted_streams_total=self.scheduler.waiting.taken_streams,
            preemptions_total=self.scheduler.preemptions,
            prefix_cache_queries_total=self.scheduler.prefix_queries,
            prefix_cache_hits_total=self.scheduler.prefix_hits,
            forks_total=dict(tally.forks),
            fork_deletions_total=dict(tally.deletions),
        )

    def _settle(self, requests: list[Request], output: StepOutput) -> list[TokenEvent]:
        """Events that waited for this step: tokens whose streams are known now, and prompts that were only scored."""
        events = []
        for request, counts in zip(requests, output.fork_counts, strict=True):
            if request.held:
                event, request.held = replace(request.held, fork_count=counts[-1]), None
                events.append(self._close(request, event))
            elif request.params.max_tokens == 0:
                event = TokenEvent(request.id, None, prompt=request.prompt_report, finish_reason="length")
                events.append(self._close(request, event))
        return events

    def _continue(self, requests: list[Request], logits: Tensor) -> list[TokenEvent]:
        """Draw a token for each request; the events that can be told at once."""
        if not requests:
            return []
        events, now = [], time.monotonic()
        tokens = self._sample(requests, logits)
        scores = _scores(requests, logits, tokens)
        for request, token, scored in zip(requests, tokens, scores, strict=True):
            event = advance(request, token, scored, self.tokenizer.end_of_text)
            request.first_token = request.first_token or now
            if request.params.return_fork_counts:
                request.held = event
            else:
                events.append(self._close(request, event))
        self._generation_tokens += len(requests)
        return events

    def _close(self, request: Request, event: TokenEvent) -> TokenEvent:
        """Let the request go if this is its last event, which then tells its usage."""
        if event.finish_reason is None:
            return event
        usage = request.usage()
        self.abort(request.id)
        return replace(event, usage=usage)

    def _sample(self, requests: list[Request], logits: Tensor) -> list[int]:
        """A token for each request, from logits (R,V)."""
        adjusted = logits.clone()
        adjusted[:, self.tokenizer.vocab_size :] = -torch.inf  # rows that only pad the embedding
        for i, request in enumerate(requests):
            if request.params.adjusts_logits:
                adjusted[i] = penalise(adjusted[i], request.params, request.prompt, request.output)
            if ids := banned(request, self.tokenizer.end_of_text):
                adjusted[i] = ban(adjusted[i], ids)
        positions = [len(request.output) for request in requests]
        draw = Draw.of([r.params for r in requests], [r.seed for r in requests], positions, logits.device)
        return sample(adjusted, draw).tolist()

    def _note(self, plan: Plan, output: StepOutput, seconds: float) -> None:
        counts = tuple(count for counts in output.fork_counts for count in counts)
        self._stream_tokens += sum(counts)
        self.last_step = StepReport(
            phase=plan.phase, seconds=seconds, batch_size=len(plan.requests), fork_counts=counts
        )


def _scores(requests: list[Request], logits: Tensor, tokens: list[int]) -> list[Scored | None]:
    """The log-probability of each request's token, under the raw distribution, where it was asked."""
    asked = [i for i, request in enumerate(requests) if request.params.logprobs is not None]
    scores: list[Scored | None] = [None] * len(requests)
    if asked:
        tops = [requests[i].params.logprobs or 0 for i in asked]
        reported = report(logits[asked], [tokens[i] for i in asked], max(tops))
        for i, top, (logprob, likeliest) in zip(asked, tops, reported, strict=True):
            scores[i] = logprob, likeliest[:top]
    return scores
