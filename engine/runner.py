"""One step of a batch of requests: pending tokens in, logits of the next token out.

Letters: R requests, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.portable.forward import CachedForward, Chunk, Extended, ForkTally
from thoughtbubbles.engine.prompt_report import PromptReport, Scores
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.revising.recompute import Recompute
from thoughtbubbles.engine.sampling import finite_rows
from thoughtbubbles.engine.scoring import score
from thoughtbubbles.model import Thoughtbubbles


@dataclass
class StepOutput:
    """What one step computed."""

    logits: Tensor
    """(R,V) of the token that follows what was computed of each request."""
    fork_counts: list[list[int]]
    """For each request, the streams after the last fork layer of each token that was computed."""
    drawn: list[int] | None = None
    """(R,) a token of each by seed and temperature alone, where a device has drawn for all; -1 where none can be."""

    @property
    def finite(self) -> list[bool]:
        """(R,) whether a token of each can be drawn: no logit is NaN or infinite."""
        return finite_rows(self.logits) if self.drawn is None else [token >= 0 for token in self.drawn]


class Runner:
    """Sends requests through the cache where their rule allows it, and through recomputation where not."""

    def __init__(self, model: Thoughtbubbles, cache: ForkCache, *, vocabulary: int) -> None:
        """`vocabulary`: how many of the model's token ids have a text; those after them only pad its embedding."""
        self.tally = ForkTally()
        self._model = model
        self._cached = _forward(model, cache, self.tally, vocabulary=vocabulary)
        self._vocabulary = vocabulary
        self._recompute = Recompute(model, self._cached.packed, vocabulary=vocabulary, limit_bytes=cache.total_bytes)

    @property
    def max_prefill_tokens(self) -> int:
        """As `CachedForward.max_prefill_tokens`."""
        return self._cached.max_prefill_tokens

    def prepare(self) -> None:
        """Do what the first tokens would wait for."""
        self._cached.prepare()

    @torch.inference_mode()
    def clear_room(self) -> None:
        """As `CachedForward.clear_room`."""
        self._cached.clear_room()

    @torch.inference_mode()
    def step(
        self, requests: list[Request], tokens: list[int], meanwhile: Callable[[], None] | None = None
    ) -> StepOutput:
        """Compute so many pending tokens of each request; who is to be told of its prompt gets its `prompt_report`.

        `meanwhile` is as in `CachedForward.extend`, and only where all run over the cache.
        """
        if all(request.cached for request in requests):
            return self._step_cached(requests, tokens, meanwhile)
        assert meanwhile is None
        groups = defaultdict(list)
        for place, request in enumerate(requests):
            groups[request.cached].append(place)
        logits: dict[int, Tensor] = {}
        fork_counts: dict[int, list[int]] = {}
        for cached, places in groups.items():
            group = [requests[place] for place in places]
            shares = [tokens[place] for place in places]
            output = self._step_cached(group, shares) if cached else self._step_recomputed(group)
            logits.update(zip(places, output.logits.float(), strict=True))
            fork_counts.update(zip(places, output.fork_counts, strict=True))
        order = range(len(requests))
        return StepOutput(torch.stack([logits[i] for i in order]), [fork_counts[i] for i in order])

    def _step_cached(
        self, requests: list[Request], tokens: list[int], meanwhile: Callable[[], None] | None = None
    ) -> StepOutput:
        chunks = [_chunk(request, share) for request, share in zip(requests, tokens, strict=True)]
        extended = self._cached.extend(chunks, meanwhile)
        bounds = list(pairwise(accumulate((len(chunk.ids) for chunk in chunks), initial=0)))
        counts = extended.counts.tolist()
        fork_counts = [counts[first:end] for first, end in bounds]
        for request, chunk, (first, _), counts in zip(requests, chunks, bounds, fork_counts, strict=True):
            request.count(chunk.state.streams(-1), sum(counts))
            _report_prompt(request, counts, partial(self._score, extended, request.prompt[1:], first))
        return StepOutput(extended.logits, fork_counts, extended.drawn)

    def _score(self, extended: Extended, targets: Sequence[int], first: int, top: int) -> Scores:
        return score(self._model, extended.streams, targets, first, top, vocabulary=self._vocabulary)

    def _step_recomputed(self, requests: list[Request]) -> StepOutput:
        revised = self._recompute.step(requests)
        for request, each in zip(requests, revised, strict=True):
            request.count(each.streams, sum(each.fork_counts))
            _report_prompt(request, each.fork_counts, partial(self._recompute.score, request.prompt, request.selection))
        return StepOutput(torch.stack([each.logits for each in revised]), [each.fork_counts for each in revised])


def _report_prompt(request: Request, counts: list[int], scoring: Callable[[int], Scores]) -> None:
    """Tell a request of its prompt, if it wants that: the streams of its tokens, and what `scoring` says of them."""
    if request.wants_prompt_report:
        top = request.params.prompt_logprobs
        scores = None if top is None else scoring(top)
        request.prompt_report = PromptReport(scores, tuple(counts[: len(request.prompt)]))


def _chunk(request: Request, tokens: int) -> Chunk:
    assert request.state is not None, "a cached request runs with a state"
    return Chunk(request.pending[:tokens], request.state, request.selection, request.seed, len(request.output),
                 request.params.effective_temperature)  # fmt: skip


def _forward(model: Thoughtbubbles, cache: ForkCache, tally: ForkTally, *, vocabulary: int) -> CachedForward:
    """How this model computes tokens over the cache: with kernels, where its device has them."""
    if model.transformer.wte.weight.device.type != "cuda":
        return CachedForward(model, cache, tally)
    from thoughtbubbles.engine.cuda.forward import DeviceForward  # noqa: PLC0415 - Triton is there only where a device is
    from thoughtbubbles.engine.cuda.layers import has_kernels  # noqa: PLC0415

    if not has_kernels(model.config):
        return CachedForward(model, cache, tally)
    return DeviceForward(model, cache, tally, vocabulary=vocabulary)
