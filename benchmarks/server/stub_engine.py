"""An engine that computes nothing and takes as long as a GPU: what is left of a measurement is the server."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from benchmarks.shapes import numbered_tokens, shape_124m
from thoughtbubbles.engine import Engine, EngineStats, RequestUsage, SamplingParams, StepReport, TokenEvent
from thoughtbubbles.server.core import ServedModel

STEP_SECONDS = 0.0007
"""Of a step that decodes 64 requests of the 124M shape on an H200, and the least of any step."""
PREFILL_SECONDS = 0.00017
"""Of each prompt of 128 tokens that a step prefills."""
VOCABULARY = 1024
NOTHING = EngineStats(
    num_requests_running=0, num_requests_waiting=0, num_streams_waiting=0, cache_streams=0, cache_bytes=0,
    cache_usage_ratio=0.0, prompt_tokens_total=0, generation_tokens_total=0, stream_tokens_total=0,
    admitted_streams_total=0, prefix_cache_queries_total=0, prefix_cache_hits_total=0,
    speculation_proposed_tokens_total=0, speculation_accepted_tokens_total=0, non_finite_logits_total=0,
    cache_integrity_checks_total=0, cache_integrity_failures_total=0, preemptions_total=0, forks_total={3: 0},
    fork_deletions_total={3: 0},
)  # fmt: skip


@dataclass(kw_only=True)
class _Request:
    prompt_tokens: int
    left: int


class StubEngine:
    """Gives every running request the same token in each step. Has what the server's loop calls of an engine."""

    def __init__(self) -> None:
        self.tokenizer = numbered_tokens(VOCABULARY)
        self.last_step: StepReport | None = None
        self._waiting: dict[str, _Request] = {}
        self._running: dict[str, _Request] = {}

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._running)

    def add(self, request_id: str, prompt: Sequence[int], params: SamplingParams, **_others: object) -> None:
        """Queue a request."""
        self._waiting[request_id] = _Request(prompt_tokens=len(prompt), left=params.max_tokens)

    def abort(self, *request_ids: str) -> list[str]:
        """Drop requests; return the ids of those that were unfinished."""
        return [each for each in request_ids if self._waiting.pop(each, None) or self._running.pop(each, None)]

    def step(self) -> list[TokenEvent]:
        """Begin the requests that wait, if any do, and give each running one a token."""
        seconds = STEP_SECONDS + PREFILL_SECONDS * len(self._waiting)
        time.sleep(seconds)
        self._running |= self._waiting
        self._waiting.clear()
        size = len(self._running)
        self.last_step = StepReport(phase="decode", seconds=seconds, batch_size=size, fork_counts=(1,) * size)
        return [self._event(request_id, request) for request_id, request in list(self._running.items())]

    def stats(self) -> EngineStats:
        """Return zeros, but for the numbers of requests."""
        return replace(NOTHING, num_requests_running=len(self._running), num_requests_waiting=len(self._waiting))

    def check_integrity(self) -> None:
        """Find nothing wrong."""

    def _event(self, request_id: str, request: _Request) -> TokenEvent:
        request.left -= 1
        if request.left:
            return TokenEvent(request_id, VOCABULARY - 2, f" {VOCABULARY - 2}")
        del self._running[request_id]
        usage = RequestUsage(
            prompt_tokens=request.prompt_tokens, completion_tokens=0, cached_tokens=0, stream_tokens=0,
            computed_tokens=0, fork_count=0, budget_used_ratio=0.5, queue_seconds=0.0, prefill_seconds=0.0,
            decode_seconds=0.0,
        )  # fmt: skip
        return TokenEvent(request_id, VOCABULARY - 2, "", finish_reason="length", usage=usage)


def load_stub() -> tuple[Engine, ServedModel]:
    """Return what `server.bridge.loading.load_model` does, with such an engine."""
    engine = StubEngine()
    return cast("Engine", engine), ServedModel(
        name="stub", weights_version="0", config=shape_124m(512), tokenizer=engine.tokenizer, max_model_len=512,
        max_waiting_streams=1 << 18, max_client_streams=1 << 17, max_choices=1024, parameters=0, device="cuda",
    )  # fmt: skip
