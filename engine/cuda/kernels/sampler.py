"""Drawing a token at the end of a step, as `engine.sampling.sample` does, and its log-probabilities.

Rows that restrict nothing are drawn from the logits by `_draw_part` and `_draw_best`. Where a row needs more, kernels
before these write the logits that it draws from (`adjusting`) and the lowest value that stays (`selection`).

Letters: B batch slots, L lanes, V vocabulary.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels import selection
from thoughtbubbles.engine.cuda.kernels.adjusting import adjust
from thoughtbubbles.engine.cuda.kernels.logprobs import CANDIDATES, report_row
from thoughtbubbles.engine.cuda.kernels.sampling import _gumbel, _mix
from thoughtbubbles.engine.cuda.kernels.sampling_state import MARKED, ONE_DRAWN, REWRITTEN, SELECTED, SamplingState
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.sampling import LARGEST_LOGIT
from thoughtbubbles.engine.sampling_params import MAX_LOGPROBS

TOKENS_AT_ONCE = 1024
"""Tokens of the vocabulary that one program looks at."""

_REWRITTEN: tl.constexpr = tl.constexpr(REWRITTEN)
_SELECTED: tl.constexpr = tl.constexpr(SELECTED)
_MARKED: tl.constexpr = tl.constexpr(MARKED)
_ONE_DRAWN: tl.constexpr = tl.constexpr(ONE_DRAWN)


class Sampler:
    """Draws tokens for any batch slots of one device, in one step at a time, from the state of their lanes."""

    def __init__(self, state: SamplingState, *, places: int, model_vocabulary: int) -> None:
        """For batches of at most so many slots, whose logits have `model_vocabulary` columns.

        Of these the first V of `state` may be drawn.
        """
        self.state, device = state, state.marks.device
        self._vocabulary, self._model_vocabulary = state.marks.shape[1], model_vocabulary
        self._room = state.marks.stride(0) + selection.MOST_GATHERED
        self._blocks = triton.cdiv(model_vocabulary, TOKENS_AT_ONCE)
        self._splits = triton.cdiv(self._vocabulary, selection.TOKENS_AT_ONCE)
        self._best = torch.empty((places, self._blocks), device=device)
        self._best_at = torch.empty((places, self._blocks), dtype=torch.int32, device=device)
        self._highest = torch.empty((places, self._blocks), device=device)
        self._sums = torch.empty((places, self._blocks, 2), device=device)
        self._candidates = torch.empty((places, self._blocks, CANDIDATES), dtype=torch.int64, device=device)
        self._scaled = torch.empty((places, self._room), device=device)
        self._partial = torch.empty((places, self._splits, selection.SAMPLED), dtype=torch.int64, device=device)
        self._gathered = torch.empty(places, dtype=torch.int32, device=device)
        self._lowest = torch.empty(places, device=device)
        self.report = torch.zeros((places, 1 + 2 * MAX_LOGPROBS), dtype=torch.int32, device=device)
        """Of each slot that asked: its token's log-probability and those of the likeliest, float32; then their ids."""

    def draw(self, logits: Tensor, lane: Tensor, token: Tensor, *, plain: bool) -> None:
        """Draw from logits (B,·) for the lanes of the slots, `lane` (B,), where -1 is none; `plain`: all of them draw
        by temperature and seed alone, and none reports log-probabilities.

        The token goes to `token` (B,) and to the lane. Where a logit is NaN or too large `token` is -1, and the lane's
        is 0, which the next step can embed.
        """
        if not plain:
            self._restrict(logits, lane)
        state, places = self.state, len(lane)
        _draw_part[(places, self._blocks)](
            logits=logits, lanes=lane, seeds=state.seed, drawn=state.drawn, temperatures=state.temperature,
            kinds=state.kind, log_min_p=state.log_min_p, scaled=self._scaled, highest=self._highest,
            lowest=self._lowest, best=self._best, best_at=self._best_at, stride=logits.stride(0),
            vocabulary=self._vocabulary, room=self._room, BLOCKS=triton.next_power_of_2(self._blocks),
            BLOCK=TOKENS_AT_ONCE, LARGEST=LARGEST_LOGIT, PLAIN=plain,
        )  # fmt: skip
        _draw_best[(places,)](
            logits=logits, lanes=lane, drawn=state.drawn, newest=state.token, kinds=state.kind, tops=state.logprobs,
            marks=state.marks, best=self._best, best_at=self._best_at, sums=self._sums, candidates=self._candidates,
            tokens=token, logprobs=self.report.view(torch.float32), ids=self.report, stride=logits.stride(0),
            width=state.marks.stride(0), blocks=self._blocks, BLOCKS=triton.next_power_of_2(self._blocks),
            MOST=MAX_LOGPROBS, CANDIDATES=CANDIDATES, PLAIN=plain,
        )  # fmt: skip

    def _restrict(self, logits: Tensor, lane: Tensor) -> None:
        """Find what each slot draws from, and what its log-probabilities need."""
        state, places = self.state, len(lane)
        blocks, splits = triton.next_power_of_2(self._blocks), triton.next_power_of_2(self._splits)
        adjust[(places, self._blocks)](
            logits=logits, lanes=lane, kinds=state.kind, drawn=state.drawn, temperatures=state.temperature,
            repetitions=state.repetition, presences=state.presence, frequencies=state.frequency,
            min_tokens=state.min_tokens, tops=state.logprobs, marks=state.marks, biases=state.bias,
            scaled=self._scaled, highest=self._highest, sums=self._sums, candidates=self._candidates,
            stride=logits.stride(0), model_vocabulary=self._model_vocabulary, vocabulary=self._vocabulary,
            width=state.marks.stride(0), room=self._room, BLOCK=TOKENS_AT_ONCE, LARGEST=LARGEST_LOGIT,
            CANDIDATES=CANDIDATES,
            enable_fp_fusion=False,
        )  # fmt: skip
        selection.narrow[(places, self._splits)](
            lanes=lane, kinds=state.kind, top_p=state.top_p, scaled=self._scaled, highest=self._highest,
            partial=self._partial, gathered=self._gathered, vocabulary=self._vocabulary, room=self._room,
            blocks=self._blocks, BLOCKS=blocks, BLOCK=selection.TOKENS_AT_ONCE, enable_fp_fusion=False,
        )  # fmt: skip
        selection.gather[(places, self._splits)](
            lanes=lane, kinds=state.kind, top_k=state.top_k, top_p=state.top_p, scaled=self._scaled,
            highest=self._highest, partial=self._partial, gathered=self._gathered, vocabulary=self._vocabulary,
            room=self._room, blocks=self._blocks, BLOCKS=blocks, SPLITS=splits, BLOCK=selection.TOKENS_AT_ONCE,
            enable_fp_fusion=False,
        )  # fmt: skip
        selection.select[(places,)](
            lanes=lane, kinds=state.kind, top_k=state.top_k, top_p=state.top_p, scaled=self._scaled,
            highest=self._highest, partial=self._partial, lowest=self._lowest, vocabulary=self._vocabulary,
            room=self._room, splits=self._splits, blocks=self._blocks, SPLITS=splits, BLOCKS=blocks,
            BLOCK=selection.AT_ONCE, num_warps=16, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit
def _draw_part(
    logits, lanes, seeds, drawn, temperatures, kinds, log_min_p, scaled, highest, lowest, best, best_at, stride,
    vocabulary, room, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    place, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    lane = tl.load(lanes + place)
    if lane < 0:
        return
    token, at = block * BLOCK + tl.arange(0, BLOCK), place * blocks + block
    temperature = tl.load(temperatures + lane)
    rewritten = False
    if not PLAIN:
        rewritten = (tl.load(kinds + lane) & _REWRITTEN) > 0
    if rewritten:
        value = tl.load(scaled + place * room + token, mask=token < vocabulary, other=float("-inf"))
        likeliest = selection.row_highest(highest + place * blocks, blocks, BLOCKS)
        broken = likeliest == float("inf")
        least = tl.where(broken, 0.0, likeliest) + tl.load(log_min_p + lane)
        if (tl.load(kinds + lane) & _SELECTED) > 0:
            least = tl.maximum(least, tl.load(lowest + place))
        value = tl.where(value >= least, value, float("-inf"))
    else:
        value = tl.load(logits + place * stride + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)
        broken = tl.min((value <= LARGEST).to(tl.int32), axis=0) == 0  # NaN is no less than anything
        if temperature > 0:
            value = value / temperature
    if temperature > 0:
        row = _mix(_mix(tl.load(seeds + lane).to(tl.uint64)) + tl.load(drawn + lane).to(tl.uint64))
        value += _gumbel(_mix(row + token.to(tl.uint64)))
    tl.store(best + at, tl.where(broken, float("inf"), tl.max(value, axis=0)))  # which no other block has
    tl.store(best_at + at, tl.where(broken, -1, block * BLOCK + tl.argmax(value, axis=0)))


@triton.jit
def _draw_best(
    logits, lanes, drawn, newest, kinds, tops, marks, best, best_at, sums, candidates, tokens, logprobs, ids, stride,
    width, blocks, BLOCKS: tl.constexpr, MOST: tl.constexpr, CANDIDATES: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    place, i = tl.program_id(0), tl.arange(0, BLOCKS)
    lane = tl.load(lanes + place)
    if lane < 0:
        return
    value = tl.load(best + place * blocks + i, mask=i < blocks, other=float("-inf"))
    token = tl.load(best_at + place * blocks + tl.argmax(value, axis=0))
    token = tl.where(tl.max(value, axis=0) > float("-inf"), token, -1)
    tl.store(tokens + place, token)
    tl.store(newest + lane, tl.maximum(token, 0))
    tl.store(drawn + lane, tl.load(drawn + lane) + 1)
    if not PLAIN:
        if ((tl.load(kinds + lane) & _MARKED) > 0) & (token >= 0):
            mark = marks + lane * width + token
            tl.store(mark, tl.load(mark) + _ONE_DRAWN)
        top = tl.load(tops + lane)
        if (top >= 0) & (token >= 0):
            report, at = place * (1 + 2 * MOST), place * blocks
            report_row(logits + place * stride, token, top, sums + 2 * at, candidates + at * CANDIDATES, blocks,
                       logprobs + report, ids + report + 1 + MOST, BLOCKS)  # fmt: skip


def scored(report: Tensor, tops: Sequence[int | None]) -> list[Scored | None]:
    """Read what `Sampler.report` has of requests that asked for so many likeliest tokens, from a copy on the host."""
    logprobs, ids = report.view(torch.float32).tolist(), report.tolist()
    return [
        None if top is None else (p[0], tuple(zip(i[1 + MAX_LOGPROBS :][:top], p[1:], strict=False)))
        for p, i, top in zip(logprobs, ids, tops, strict=True)
    ]
