"""The executor of requests without pages, beside one for all others."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple

import torch

from thoughtbubbles.engine.batch import Landed, Output, Phase, Plan
from thoughtbubbles.engine.executor import Executor, Flight
from thoughtbubbles.engine.lookup import Guessing
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.prompt_report import ForkScores, PromptReport, Scores
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.revising.forward import Revised
from thoughtbubbles.engine.revising.pieces import Pieces, completed
from thoughtbubbles.engine.revising.recompute import Recompute
from thoughtbubbles.engine.sampler import Sampler

LEAST_SHARE = 1 / 9
"""Least time for requests without pages that decode, over that of the others: these keep nine tenths of their speed."""
ALONE_SECONDS = 0.05
"""Time for scoring a prompt token by token in a launch beside nothing else: requests that come wait for no longer."""


class _Computed(NamedTuple):
    """What a step computed, by request."""

    scores: dict[Request, Scores]
    """Of prompts of which that is to be reported."""
    revised: dict[Request, Revised]


@dataclass
class _Work:
    """A step of requests without pages, which may take several steps of the engine."""

    phase: Phase
    requests: list[Request]
    """Those of its requests that have not ended."""
    pieces: Pieces[_Computed]


class RevisingExecutor(Generic[Flight]):
    """Computes the requests that have no pages, and passes the others on.

    They are under `dynamic` or `fixed`, have interventions in their forks, or report the scores of forks.

    What it computes is landed by the launch that ends it, also where the other executor runs ahead. A step of one of
    these requests can take as long as many steps of the others. So it is computed in pieces, a few each launch: of
    prompts as much as of other prompts, and of requests that decode as much as their number among all that decode,
    or a tenth of the time if that is more. Scoring a prompt token by token takes as long as decoding it, and as much.
    """

    def __init__(
        self, paged: Executor[Flight], recompute: Recompute, sampler: Sampler, *, max_prefill_tokens: int | None
    ) -> None:
        """`paged` computes all requests whose streams are in the fork-state cache.

        `max_prefill_tokens` is the setting, None for what `paged` recommends.
        """
        self.paged = paged
        self._max_prefill_tokens = max_prefill_tokens
        self.recompute = recompute
        self._sampler = sampler
        self._work: _Work | None = None
        self._scoring = False  # whether the next piece is of a prompt that is scored token by token
        self._last_piece = time.monotonic()  # when it ended; all time since then is the others'
        self._beside = False  # whether there have been some since
        self._seconds_left = 0.0  # for requests that decode; negative after a piece that took longer

    @property
    def name(self) -> str:
        """As `Executor.name`: the other executor's."""
        return self.paged.name

    @property
    def runs_ahead(self) -> bool:
        """As `Executor.runs_ahead`."""
        return self.paged.runs_ahead

    @property
    def mixes(self) -> bool:
        """As `Executor.mixes`."""
        return self.paged.mixes

    @property
    def max_prefill_tokens(self) -> int:
        """As `Executor.max_prefill_tokens`: the setting, or the other executor's."""
        return self._max_prefill_tokens or self.paged.max_prefill_tokens

    @property
    def max_lone_prefill_tokens(self) -> int:
        """As `Executor.max_lone_prefill_tokens`: the setting, or the other executor's."""
        return self._max_prefill_tokens or self.paged.max_lone_prefill_tokens

    @property
    def part_tokens(self) -> int:
        """As `Executor.part_tokens`: the other executor's, since requests without pages are computed in pieces."""
        return self.paged.part_tokens

    @property
    def guessing(self) -> Guessing:
        """As `Executor.guessing`: the other executor's, since requests without pages do not speculate."""
        return self.paged.guessing

    @property
    def tally(self) -> ForkTally:
        """As `Executor.tally`: requests without pages count nothing, for what `dynamic` deletes may come back."""
        return self.paged.tally

    def prepare(self) -> None:
        """As `Executor.prepare`."""
        self.paged.prepare()
        self.recompute.prepare()

    def read_weights(self) -> None:
        """As `Executor.read_weights`."""
        self.paged.read_weights()
        self.recompute.forget()

    def launch(self, plan: Plan) -> list[Flight | Landed]:
        """Launch what the other executor computes, and then compute pieces of the rest."""
        others = plan.only(paged=True)
        flights: list[Flight | Landed] = [*self.paged.launch(others)]
        self._beside |= bool(others.requests)
        requests = [] if others is plan else plan.only(paged=False).requests
        if not requests:
            if self._work is None:
                self._end_pieces()
            return flights
        self._work = self._work or self._begin(plan.phase, requests)
        if self._work.phase == plan.phase:
            if output := self._advance(plan, self._work):
                flights.append(Landed(output))
            self._end_pieces()
        return flights

    def land(self, flight: Flight | Landed) -> Output:
        """As `Executor.land`."""
        return flight.output if isinstance(flight, Landed) else self.paged.land(flight)

    def release(self, requests: Sequence[Request]) -> None:
        """As `Executor.release`."""
        self.paged.release(requests)
        if self._work:
            ended = set(requests)
            self._work.requests = [request for request in self._work.requests if request not in ended]
            if not self._work.requests:
                self._work = None

    @torch.inference_mode()
    def _advance(self, plan: Plan, work: _Work) -> Output | None:
        """Compute pieces of the work while this launch has time for them. Return its output once it has ended."""
        try:
            if work.phase == "prefill" and not self._scoring:
                self._prefill(work)
            elif (seconds := self._seconds(plan)) is not None:
                self._share(work, seconds)
            else:
                return self._output(work, completed(work.pieces))
        except StopIteration as end:
            return self._output(work, end.value)
        return None

    def _prefill(self, work: _Work) -> None:
        """Compute at least one piece, and as many as another prompt gets a step."""
        left = self.max_prefill_tokens * len(self.recompute.model.blocks)
        while left > 0 and not self._scoring:
            left -= next(work.pieces)

    def _seconds(self, plan: Plan) -> float | None:
        """Return how much time the work has in this launch; None for all that it needs."""
        others = sum(request.paged for request in plan.requests)
        since = time.monotonic() - self._last_piece
        if others:
            return max(LEAST_SHARE, (len(plan.requests) - others) / others) * since
        if not self._scoring:
            return None
        return LEAST_SHARE * since if self._beside else ALONE_SECONDS

    def _share(self, work: _Work, seconds: float) -> None:
        """Compute pieces for so many seconds. A longer one is made up for by the next launches."""
        self._seconds_left = min(self._seconds_left, 0.0) + seconds
        while self._seconds_left > 0:
            began = time.monotonic()
            try:
                next(work.pieces)
            finally:
                self._seconds_left -= time.monotonic() - began

    def _end_pieces(self) -> None:
        """Note that from now on the time is the others'."""
        self._last_piece, self._beside = time.monotonic(), False

    def _begin(self, phase: Phase, requests: list[Request]) -> _Work:
        self._scoring = False  # of one that was aborted
        return _Work(phase, requests, self._compute(requests))

    def _compute(self, requests: Sequence[Request]) -> Pieces[_Computed]:
        """Score the prompts of which that is to be reported, and compute the tokens that are not computed yet."""
        scores: dict[Request, Scores] = {}
        for request in requests:
            if request.wants_prompt_report and (top := request.params.prompt_logprobs) is not None:
                self._scoring = request.selection.rule != "causal"
                scores[request] = yield from self.recompute.score(request, top)
                self._scoring = False
        return _Computed(scores, (yield from self.recompute.step(requests)))

    def _output(self, work: _Work, computed: _Computed) -> Output:
        """Draw the next tokens of the requests that have not ended, and return the output. The work has ended."""
        self._work = None
        requests, revised = work.requests, [computed.revised[request] for request in work.requests]
        wanted = [request.params.return_fork_scores for request in requests]
        fork_scores = [each.fork_scores() if report else [] for each, report in zip(revised, wanted, strict=True)]
        drawn = self._sampler.draw(requests, torch.stack([each.logits for each in revised]))
        return Output(
            requests=requests,
            step_fork_counts=[count for each in revised for count in each.fork_counts],
            fork_counts=[each.fork_counts[-1] for each in revised],
            stream_tokens=[sum(each.fork_counts) for each in revised],
            num_streams=[each.streams for each in revised],
            finite=drawn.finite,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            prompt_reports=[
                _report(request, computed.scores.get(request), each.fork_counts, own)
                for request, each, own in zip(requests, revised, fork_scores, strict=True)
            ],
            fork_scores=fork_scores,
        )


def _report(
    request: Request, scores: Scores | None, fork_counts: list[int], fork_scores: list[ForkScores]
) -> PromptReport | None:
    """Return the report of a prompt that was computed as a whole, if the request asks for one."""
    if not request.wants_prompt_report:
        return None
    prompt = slice(len(request.prompt))
    counts = fork_counts[prompt] if request.params.return_fork_counts else ()
    return PromptReport(scores, tuple(counts), tuple(fork_scores[prompt]))
