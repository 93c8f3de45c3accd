"""The portable executor: torch operators, with one forward pass for prefill and decode. Its flights land at once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from thoughtbubbles.engine.batch import Landed, Output, Plan
from thoughtbubbles.engine.cache.fork_state import streams_up_to
from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.lookup import Guessing
from thoughtbubbles.engine.portable.forward import Chunk, Extended, ForkTally
from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.engine.prompt_report import PromptReport, Scores
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampler import Drawn, Sampler
from thoughtbubbles.engine.scoring import score
from thoughtbubbles.model import Streams, Thoughtbubbles


class Computed(Protocol):
    """What a forward pass computed, until its next step."""

    @property
    def counts(self) -> Indices:
        """(T,) streams of each token."""

    @property
    def streams(self) -> Streams:
        """Of all tokens (B = 1), after the last layer."""


Extended_co = TypeVar("Extended_co", bound=Computed, covariant=True)


class Forward(Protocol[Extended_co]):
    """A forward pass over the fork-state cache."""

    @property
    def model(self) -> Thoughtbubbles:
        """The model it computes."""

    @property
    def packed(self) -> PackedModel:
        """As `CachedForward.packed`."""

    @property
    def max_prefill_tokens(self) -> int:
        """As `Executor.max_prefill_tokens`."""

    @property
    def guessing(self) -> Guessing:
        """As `Executor.guessing`."""

    @property
    def tally(self) -> ForkTally:
        """As `Executor.tally`."""

    def prepare(self) -> None:
        """As `Executor.prepare`."""

    def read_weights(self) -> None:
        """As `Executor.read_weights`."""

    def clear_gathered(self) -> None:
        """As `CachedForward.clear_gathered`."""

    def extend(self, chunks: list[Chunk]) -> Extended_co:
        """As `CachedForward.extend`."""


class LandedExecutor(ABC, Generic[Extended_co]):
    """Computes requests whose streams are in the fork-state cache. A plan is computed when it is launched."""

    name: str
    runs_ahead = False
    mixes = False
    part_tokens = 0

    def __init__(self, forward: Forward[Extended_co], sampler: Sampler) -> None:
        self.forward = forward
        self.sampler = sampler

    @property
    def max_prefill_tokens(self) -> int:
        """As `Executor.max_prefill_tokens`."""
        return self.forward.max_prefill_tokens

    @property
    def max_lone_prefill_tokens(self) -> int:
        """As `Executor.max_lone_prefill_tokens`."""
        return self.forward.max_prefill_tokens

    @property
    def guessing(self) -> Guessing:
        """As `Executor.guessing`."""
        return self.forward.guessing

    @property
    def tally(self) -> ForkTally:
        """As `Executor.tally`."""
        return self.forward.tally

    def prepare(self) -> None:
        """As `Executor.prepare`."""
        self.forward.prepare()

    def read_weights(self) -> None:
        """As `Executor.read_weights`."""
        self.forward.read_weights()

    @torch.inference_mode()
    def launch(self, plan: Plan) -> list[Landed]:
        """Compute the plan, and return its one flight."""
        if not plan.requests:
            return []
        batch = Batch.of(plan.requests, plan.num_tokens)
        extended = self.forward.extend(batch.chunks)
        draw = partial(self.draw, batch, extended)
        return [Landed(batch.output(self.forward, extended, draw, vocabulary=self.sampler.vocabulary))]

    def release(self, requests: Sequence[Request]) -> None:
        """As `Executor.release`: it keeps nothing."""

    def land(self, flight: Landed) -> Output:
        """As `Executor.land`."""
        return flight.output

    @abstractmethod
    def draw(self, batch: "Batch", extended: Extended_co) -> Drawn:  # type: ignore[misc]
        """Draw the next tokens from what the forward pass computed."""


class PortableExecutor(LandedExecutor[Extended]):
    """Computes with torch operators, on any device: the reference for other executors."""

    name = "portable"

    def draw(self, batch: "Batch", extended: Extended) -> Drawn:
        """Draw every token on the host's side."""
        return self.sampler.draw(batch.requests, extended.logits, batch.guessed)


@dataclass(frozen=True)
class Batch:
    """The requests of a forward pass and their next tokens, in rows: one a request, and one for each guess."""

    requests: list[Request]
    """(L,) the request of each row."""
    guessed: list[int]
    """(L,) how many guesses of the request's draft are before the token that the row draws."""
    chunks: list[Chunk]
    """One a request."""

    @classmethod
    def of(cls, requests: list[Request], num_tokens: Sequence[int]) -> Self:
        """Return the batch of the next `num_tokens` tokens of each request."""
        chunks = [_chunk(request, tokens) for request, tokens in zip(requests, num_tokens, strict=True)]
        rows = [(request, i) for request, chunk in zip(requests, chunks, strict=True) for i in range(chunk.num_draws)]
        return cls([request for request, _ in rows], [i for _, i in rows], chunks)

    def output(
        self, forward: Forward[Computed], extended: Computed, draw: Callable[[], Drawn], *, vocabulary: int,
        scored: Sequence[Scores | None] | None = None,
    ) -> Output:  # fmt: skip
        """Return the output of a forward pass. Must come before the next pass, which may overwrite `extended`.

        `draw` returns the tokens drawn: a device may still draw while the rest is prepared. `scored`: the prompts'
        log-probabilities, one entry a row, if they are computed already.
        """
        counts = extended.counts.tolist()
        ends = list(accumulate(size for chunk in self.chunks for size in chunk.row_sizes))
        starts = [0, *ends[:-1]]
        stream_tokens = np.add.reduceat(extended.counts, starts).tolist()
        num_streams = self._num_streams()
        drawn = draw()
        if not all(drawn.finite):
            forward.clear_gathered()
        reports: list[PromptReport | None] = [None] * len(self.requests)
        for i, request in enumerate(self.requests):
            if request.wants_prompt_report:
                top, scores, prompt = request.params.prompt_logprobs, scored[i] if scored else None, request.prompt
                if top is not None and not scored:
                    scores = score(forward.model, extended.streams, prompt[1:], starts[i], top, vocabulary=vocabulary)
                own = counts[starts[i] : starts[i] + len(prompt)] if request.params.return_fork_counts else ()
                reports[i] = PromptReport(scores, tuple(own))
        return Output(
            requests=self.requests,
            step_fork_counts=counts,
            fork_counts=[counts[end - 1] for end in ends],
            stream_tokens=stream_tokens,
            num_streams=num_streams,
            finite=drawn.finite,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            prompt_reports=reports,
            fork_scores=[()] * len(self.requests),
        )

    def _num_streams(self) -> list[int]:
        """Return the streams of each row's tokens up to the last one before its draw."""
        draws = [(chunk.state, behind) for chunk in self.chunks for behind in range(chunk.guesses, -1, -1)]
        return streams_up_to([state for state, _ in draws], [behind for _, behind in draws])


def _chunk(request: Request, tokens: int) -> Chunk:
    assert request.state is not None, "a request with pages runs with a state"
    pending, guesses = request.num_pending, len(request.draft)
    draws = tokens == pending + guesses and request.draws
    ids = [request.newest] if pending == 1 else request.pending  # mostly the former, whatever its length
    del ids[tokens:]
    ids += request.draft
    return Chunk(
        ids, request.state, request.selection, draws, request.params.logprobs, guesses,
        request.params.prompt_logprobs if request.wants_prompt_report else None,
    )  # fmt: skip
