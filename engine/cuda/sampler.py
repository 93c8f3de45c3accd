"""Sampling on the device: buffers, the state of every lane, and the launches of a draw.

A draw for requests that restrict nothing is two launches. Otherwise four come before: one for penalties, bias, bans and
what log-probabilities need, and three for top-k and top-p. All of them leave out the slots that need nothing.

Letters: B batch slots, L lanes, V vocabulary.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
import triton
from torch import Tensor

from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cuda.kernels import selection
from thoughtbubbles.engine.cuda.kernels.adjusting import adjust
from thoughtbubbles.engine.cuda.kernels.logprobs import CANDIDATES
from thoughtbubbles.engine.cuda.kernels.overlap import overlapped
from thoughtbubbles.engine.cuda.kernels.sampling import TOKENS_AT_ONCE, draw_best, draw_part
from thoughtbubbles.engine.cuda.kernels.sampling_state import SamplingState
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampling import LARGEST_LOGIT
from thoughtbubbles.engine.sampling_params import MAX_LOGPROBS

LOGPROB_WORDS = 1 + 2 * MAX_LOGPROBS
"""Words of 32 bits that report a token's log-probability, those of the likeliest, and their ids."""


class DeviceSampler:
    """Draws tokens on the device, for the batch slots of one step at a time, from the state of their lanes."""

    def __init__(
        self, generations: Indices, *, batch_size: int, vocabulary: int, model_vocabulary: int, end_of_text: int,
        device: torch.device, drafted: int = 0,
    ) -> None:  # fmt: skip
        """For batches of at most so many slots, and as many lanes as there are `generations` (`Ledger.generation`).

        Logits have `model_vocabulary` columns, of which the first `vocabulary` may be drawn. At most `drafted` tokens
        of a step belong to requests with drafts.
        """
        self.state = state = SamplingState.empty(len(generations) + 1 + drafted, vocabulary, device)
        self.spare_lane = len(generations)
        """The lane of slots whose token is discarded; it is greedy. Those after it draw for requests with drafts."""
        self.vocabulary = vocabulary
        self._end_of_text = end_of_text
        self._generations = generations
        self._written = np.zeros_like(generations)
        """(L,) the generations of the lanes when they were last written."""
        self._model_vocabulary = model_vocabulary
        self._row_size = state.marks.stride(0) + selection.MOST_GATHERED
        self._blocks = triton.cdiv(model_vocabulary, TOKENS_AT_ONCE)
        self._splits = triton.cdiv(self.vocabulary, selection.TOKENS_AT_ONCE)
        self._best = torch.empty((batch_size, self._blocks), device=device)
        self._best_at = torch.empty((batch_size, self._blocks), dtype=torch.int32, device=device)
        self._highest = torch.empty((batch_size, self._blocks), device=device)
        self._sums = torch.empty((batch_size, self._blocks, 2), device=device)
        self._candidates = torch.empty((batch_size, self._blocks, CANDIDATES), dtype=torch.int64, device=device)
        self._scaled = torch.empty((batch_size, self._row_size), device=device)
        self._histogram = torch.empty((batch_size, 2, selection.BINS), dtype=torch.int64, device=device)
        self._gathered = torch.empty(batch_size, dtype=torch.int32, device=device)
        self._facts = torch.empty((batch_size, selection.FACTS), dtype=torch.int64, device=device)
        self._lowest = torch.empty(batch_size, device=device)
        self.report = torch.zeros((batch_size, LOGPROB_WORDS), dtype=torch.int32, device=device)
        """For each slot, if requested: log-probabilities of its token and the likeliest ones, then their ids."""

    def assign(self, rows: Indices, requests: Sequence[Request]) -> None:
        """Have the lanes `rows` draw for these requests, unless they do so already: the device moves them on itself."""
        new = np.flatnonzero(self._written[rows] != self._generations[rows])
        if len(new):
            self.state.write(rows[new], [requests[i] for i in new.tolist()], self._end_of_text)
            self._written[rows[new]] = self._generations[rows[new]]

    def assign_drafts(self, rows: Sequence[int], requests: Sequence[Request]) -> list[Sequence[int]]:
        """Have lanes draw for requests with drafts in the next step, and return those of each.

        Their own lanes, `rows`, lag behind then: they are written again when they next draw.
        """
        *starts, end = accumulate((1 + len(request.draft) for request in requests), initial=self.spare_lane + 1)
        drafts = [request.draft for request in requests]
        self.state.write(np.array(starts, np.int64), requests, self._end_of_text, drafts=drafts)
        self._written[rows] = 0
        return [range(*each) for each in pairwise([*starts, end])]

    def draw(self, logits: Tensor, lane: Tensor, token: Tensor, *, plain: bool) -> None:
        """Draw from logits (B,·) for the lanes of the slots, `lane` (B,), where -1 is none; `plain`: all of them draw
        by temperature and seed alone, and none reports log-probabilities.

        The token goes to `token` (B,) and to the lane. Where a logit is NaN or too large `token` is -1, and the lane's
        is 0, which the next step can embed.
        """
        if not plain:
            self._restrict(logits, lane)
        state, batch_size = self.state, len(lane)
        draw_part[(batch_size, self._blocks)](
            logits=logits, lanes=lane, seeds=state.seed, drawn=state.drawn, temperatures=state.temperature,
            kinds=state.kind, log_min_p=state.log_min_p, scaled=self._scaled, highest=self._highest,
            lowest=self._lowest, best=self._best, best_at=self._best_at, stride=logits.stride(0),
            vocabulary=self.vocabulary, row_size=self._row_size, BLOCKS=triton.next_power_of_2(self._blocks),
            BLOCK=TOKENS_AT_ONCE, LARGEST=LARGEST_LOGIT, PLAIN=plain, **overlapped(logits),
        )  # fmt: skip
        draw_best[(batch_size,)](
            logits=logits, lanes=lane, drawn=state.drawn, newest=state.token, kinds=state.kind, tops=state.logprobs,
            marks=state.marks, best=self._best, best_at=self._best_at, sums=self._sums, candidates=self._candidates,
            tokens=token, logprobs=self.report.view(torch.float32), ids=self.report, stride=logits.stride(0),
            width=state.marks.stride(0), blocks=self._blocks, BLOCKS=triton.next_power_of_2(self._blocks),
            MOST=MAX_LOGPROBS, CANDIDATES=CANDIDATES, PLAIN=plain, **overlapped(logits),
        )  # fmt: skip

    def _restrict(self, logits: Tensor, lane: Tensor) -> None:
        """Find what each slot draws from, and what its log-probabilities need."""
        state, batch_size, blocks = self.state, len(lane), triton.next_power_of_2(self._blocks)
        adjust[(batch_size, self._blocks)](
            logits=logits, lanes=lane, kinds=state.kind, drawn=state.drawn, temperatures=state.temperature,
            repetitions=state.repetition, presences=state.presence, frequencies=state.frequency,
            min_tokens=state.min_tokens, tops=state.logprobs, marks=state.marks, biases=state.bias,
            scaled=self._scaled, highest=self._highest, sums=self._sums, candidates=self._candidates,
            histogram=self._histogram, gathered=self._gathered, stride=logits.stride(0),
            model_vocabulary=self._model_vocabulary, vocabulary=self.vocabulary, width=state.marks.stride(0),
            row_size=self._row_size, BLOCK=TOKENS_AT_ONCE, LARGEST=LARGEST_LOGIT, CANDIDATES=CANDIDATES,
            CLEARED=triton.next_power_of_2(triton.cdiv(2 * selection.BINS, self._blocks)), enable_fp_fusion=False,
        )  # fmt: skip
        selection.spread[(batch_size, self._splits)](
            lanes=lane, kinds=state.kind, top_k=state.top_k, top_p=state.top_p, scaled=self._scaled,
            highest=self._highest, histogram=self._histogram, vocabulary=self.vocabulary, row_size=self._row_size,
            blocks=self._blocks, BLOCKS=blocks, BLOCK=selection.TOKENS_AT_ONCE, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
        selection.gather[(batch_size, self._splits)](
            lanes=lane, kinds=state.kind, top_k=state.top_k, top_p=state.top_p, scaled=self._scaled,
            highest=self._highest, histogram=self._histogram, gathered=self._gathered, facts=self._facts,
            vocabulary=self.vocabulary, row_size=self._row_size, blocks=self._blocks, BLOCKS=blocks,
            BLOCK=selection.TOKENS_AT_ONCE, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
        selection.select[(batch_size,)](
            lanes=lane, kinds=state.kind, top_k=state.top_k, top_p=state.top_p, scaled=self._scaled,
            highest=self._highest, gathered=self._gathered, facts=self._facts, lowest=self._lowest,
            vocabulary=self.vocabulary, row_size=self._row_size, blocks=self._blocks, BLOCKS=blocks,
            BLOCK=selection.AT_ONCE, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip


def scored(report: Tensor, tops: Sequence[int | None], vocabulary: int) -> list[Scored | None]:
    """Read a copy of `DeviceSampler.report` on the host, for requests that want `tops` likeliest tokens each."""
    scores: list[Scored | None] = [None] * len(tops)
    for i, top in enumerate(tops):
        if top is not None:
            logprob, *likeliest = report[i].view(torch.float32)[: 1 + min(top, vocabulary)].tolist()
            ids = report[i, 1 + MAX_LOGPROBS :].tolist()
            scores[i] = logprob, tuple(zip(ids, likeliest, strict=False))
    return scores
