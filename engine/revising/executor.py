"""The executor of requests without pages, beside one for all others."""

from typing import Generic

import torch

from thoughtbubbles.engine.batch import Landed, Output, Plan
from thoughtbubbles.engine.executor import Executor, Flight
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.prompt_report import ForkScores, PromptReport
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.revising.forward import Revised
from thoughtbubbles.engine.revising.recompute import Recompute
from thoughtbubbles.engine.sampler import Sampler


class RevisingExecutor(Generic[Flight]):
    """Computes the requests that have no pages, and passes the others on.

    They are under `dynamic` or `fixed`, have interventions in their forks, or report the scores of forks.

    What it computes lands at once, also where the other executor runs ahead.
    """

    def __init__(self, paged: Executor[Flight], recompute: Recompute, sampler: Sampler) -> None:
        """`paged` computes all requests whose streams are in the fork-state cache."""
        self.paged = paged
        self.recompute = recompute
        self._sampler = sampler

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
        """As `Executor.max_prefill_tokens`."""
        return self.paged.max_prefill_tokens

    @property
    def max_lone_prefill_tokens(self) -> int:
        """As `Executor.max_lone_prefill_tokens`."""
        return self.paged.max_lone_prefill_tokens

    @property
    def tally(self) -> ForkTally:
        """As `Executor.tally`: requests without pages count nothing, for what `dynamic` deletes may come back."""
        return self.paged.tally

    def prepare(self) -> None:
        """As `Executor.prepare`."""
        self.paged.prepare()

    def read_weights(self) -> None:
        """As `Executor.read_weights`."""
        self.paged.read_weights()
        self.recompute.forget()

    def launch(self, plan: Plan) -> list[Flight | Landed]:
        """Launch what the other executor computes, and then compute the rest."""
        flights: list[Flight | Landed] = [*self.paged.launch(plan.only(paged=True))]
        revising = plan.only(paged=False)
        if revising.requests:
            flights.append(Landed(self._compute(revising.requests)))
        return flights

    def land(self, flight: Flight | Landed) -> Output:
        """As `Executor.land`."""
        return flight.output if isinstance(flight, Landed) else self.paged.land(flight)

    @torch.inference_mode()
    def _compute(self, requests: list[Request]) -> Output:
        revised = self.recompute.step(requests)
        wanted = [request.params.return_fork_scores for request in requests]
        scores = [each.fork_scores() if report else [] for each, report in zip(revised, wanted, strict=True)]
        drawn = self._sampler.draw(requests, torch.stack([each.logits for each in revised]))
        return Output(
            requests=requests,
            fork_counts=[each.fork_counts for each in revised],
            num_streams=[each.streams for each in revised],
            finite=drawn.finite,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            prompt_reports=[self._report(*each) for each in zip(requests, revised, scores, strict=True)],
            fork_scores=scores,
        )

    def _report(self, request: Request, revised: Revised, fork_scores: list[ForkScores]) -> PromptReport | None:
        """Return the report of a prompt that was computed as a whole, if the request asks for one."""
        if not request.wants_prompt_report:
            return None
        top = request.params.prompt_logprobs
        scores = None if top is None else self.recompute.score(request, top)
        prompt = slice(len(request.prompt))
        return PromptReport(scores, tuple(revised.fork_counts[prompt]), tuple(fork_scores[prompt]))
