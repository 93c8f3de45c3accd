"""The beginning of a decode step, its forks and its readout: one new token in each batch slot.

SPEC.md, "Fork", "Selection rules", "Positions" and "Output averaging".
Letters: B batch slots, M rows that there may be, C candidates of one token, D model width, H head width.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from thoughtbubbles.engine.cache.pages import NO_CANDIDATE
from thoughtbubbles.engine.cuda.kernels.overlap import overlapped, start_next, wait_for_previous
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.lanes import Lanes
from thoughtbubbles.model import ForkingBlock
from thoughtbubbles.model.forking import LOWEST_LOG_P
from thoughtbubbles.model.selection import GRID

_GRID = tl.constexpr(float(GRID))
_LOWEST = tl.constexpr(LOWEST_LOG_P)
_NO_CANDIDATE = tl.constexpr(NO_CANDIDATE)
_PRIOR_AT_ONCE = 512


@dataclass(frozen=True)
class Choice:
    """The candidates that survived a fork, of one new token in each batch slot."""

    candidate: Tensor
    """(B,C) int32, the candidate that each of a slot's streams comes from; no meaning beyond their count."""
    score: Tensor
    """(B,C) float32, their cumulative scores."""

    @classmethod
    def empty(cls, batch_size: int, candidates: int, device: torch.device) -> Self:
        """Return memory for a choice."""
        shape = (batch_size, candidates)
        return cls(torch.empty(shape, dtype=torch.int32, device=device), torch.empty(shape, device=device))


def embed(
    *, embedding: Tensor, token: Tensor, lanes: Lanes, time: Tensor, rows: Rows, frequencies: Tensor, x: Tensor,
    norm: nn.LayerNorm, normed: Tensor,
) -> None:  # fmt: skip
    """Make one stream of each slot's newest token, `token` (L,): its embedding in x (M,D), its row in `rows`.

    LN(x) goes to `normed` (M,D), the token's index in its sequence to `time` (B,). `frequencies` (H/2,) are the rotary
    ones. The lane advances by a token.
    """
    _embed[(rows.batch_size,)](
        embedding=embedding, token=token, tokens=lanes.tokens, streams=lanes.streams[0], table=rows.table,
        lanes=rows.lane, frequencies=frequencies, time=time, x=x, starts=rows.start, counts=rows.count,
        lengths=rows.length, live=rows.live, slots=rows.slot, scores=rows.score, cosines=rows.cos, sines=rows.sin,
        table_stride=rows.table.stride(0), width=x.shape[1], half=frequencies.shape[0], norm_weight=norm.weight,
        norm_bias=norm.bias, eps=norm.eps, normed=normed, PAGE=rows.page_size,
        BATCH=triton.next_power_of_2(rows.batch_size), WIDTH=triton.next_power_of_2(x.shape[1]),
        HALF=triton.next_power_of_2(frequencies.shape[0]),
    )  # fmt: skip


def select(
    *, block: ForkingBlock, x: Tensor, rows: Rows, scores: Tensor, lanes: Lanes, time: Tensor, into: Rows, segment: int,
    block_size: int, choice: Choice, tally: Tensor,
) -> None:  # fmt: skip
    """Apply the causal rule to the candidates of streams x (M,D), on their way into `segment`, whose rows are `into`.

    Writes `choice`, each slot's count in `into`, and the candidates' grid scores to the cache's pages, `scores`
    (slots,2). Adds to `tally` (2,) the fork copies that survived and the streams that were deleted.
    """
    norm = block.forking_ln
    _select[(rows.batch_size,)](
        x=x, norm_weight=norm.weight, norm_bias=norm.bias, projection=block.forking_score.weight, eps=norm.eps,
        starts=rows.start, counts=rows.count, lengths=rows.length, slots=rows.slot, scores=rows.score, table=rows.table,
        lanes=rows.lane, cache_scores=scores, next_streams=lanes.streams[segment], time=time, kappas=lanes.kappa,
        block_size=block_size, next_counts=into.count, chosen=choice.candidate, chosen_scores=choice.score, tally=tally,
        table_stride=rows.table.stride(0), width=x.shape[1], PAGE=rows.page_size, CANDIDATES=choice.candidate.shape[1],
        PRIOR=_PRIOR_AT_ONCE, WIDTH=triton.next_power_of_2(x.shape[1]), num_warps=8, **overlapped(x),
    )  # fmt: skip


def gather(
    *, block: ForkingBlock, x: Tensor, rows: Rows, lanes: Lanes, time: Tensor, choice: Choice, into: Rows, segment: int,
    frequencies: Tensor, out: Tensor, norm: nn.LayerNorm, normed: Tensor,
) -> None:  # fmt: skip
    """Write the streams of the chosen candidates to `out` (M,D), and their rows to `into`.

    LN(out) goes to `normed` (M,D).
    """
    _gather[(rows.batch_size,)](
        x=x, fork_embedding=block.fork_embedding, starts=rows.start, chosen=choice.candidate,
        chosen_scores=choice.score, lanes=rows.lane, time=time, next_streams=lanes.streams[segment],
        next_table=into.table, frequencies=frequencies, out=out, next_starts=into.start, next_counts=into.count,
        next_lengths=into.length, live=into.live, slots=into.slot, scores=into.score, cosines=into.cos, sines=into.sin,
        table_stride=into.table.stride(0), width=x.shape[1], half=frequencies.shape[0], norm_weight=norm.weight,
        norm_bias=norm.bias, eps=norm.eps, normed=normed, PAGE=rows.page_size, CANDIDATES=choice.candidate.shape[1],
        BATCH=triton.next_power_of_2(rows.batch_size), WIDTH=triton.next_power_of_2(x.shape[1]),
        HALF=triton.next_power_of_2(frequencies.shape[0]), num_warps=8, **overlapped(x),
    )  # fmt: skip


def average(*, x: Tensor, rows: Rows, norm: nn.LayerNorm, out: Tensor, rightmost: bool, norm_first: bool) -> None:
    """Average each slot's streams x (M,D) and normalise the result: out (B,D), zeros for a slot without streams.

    The average is Σ P_j x_j, or the original alone if `rightmost`. `norm_first` normalises each stream instead.
    """
    _average[(len(out),)](
        x=x, starts=rows.start, counts=rows.count, scores=rows.score, norm_weight=norm.weight, norm_bias=norm.bias,
        eps=norm.eps, out=out, width=x.shape[1], RIGHTMOST=rightmost, NORM_FIRST=norm_first,
        WIDTH=triton.next_power_of_2(x.shape[1]), **overlapped(x),
    )  # fmt: skip


@triton.jit
def _embed(
    embedding, token, tokens, streams, table, lanes, frequencies,
    time, x, starts, counts, lengths, live, slots, scores, cosines, sines, table_stride, width, half,
    norm_weight, norm_bias, eps, normed,
    PAGE: tl.constexpr, BATCH: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    start_next()
    b, others = tl.program_id(0), tl.arange(0, BATCH)
    lane = tl.load(lanes + b)
    earlier = tl.load(lanes + others, mask=others < b, other=-1)
    row = tl.sum((earlier >= 0).to(tl.int32))
    present = (lane >= 0).to(tl.int32)
    tl.store(starts + b, row)
    tl.store(counts + b, present)
    if b == tl.num_programs(0) - 1:
        tl.store(live, row + present)
    if lane < 0:
        return
    t, n = tl.load(tokens + lane), tl.load(streams + lane)
    tl.store(time + b, t)
    tl.store(tokens + lane, t + 1)
    tl.store(streams + lane, n + 1)
    tl.store(lengths + b, n + 1)
    tl.store(slots + row, tl.load(table + lane * table_stride + n // PAGE) * PAGE + n % PAGE)
    tl.store(scores + row, 0.0)
    i = tl.arange(0, HALF)
    angle = (t + 1).to(tl.float32) * tl.load(frequencies + i, mask=i < half, other=0.0)
    tl.store(cosines + row * half + i, tl.cos(angle), mask=i < half)
    tl.store(sines + row * half + i, tl.sin(angle), mask=i < half)
    d = tl.arange(0, WIDTH)
    vector = tl.load(embedding + tl.load(token + lane).to(tl.int64) * width + d, mask=d < width)
    tl.store(x + row * width + d, vector, mask=d < width)
    y = _norm(vector[None, :].to(tl.float32), d < width, norm_weight, norm_bias, eps, d, width)
    tl.store(normed + row * width + d[None, :], y.to(normed.dtype.element_ty), mask=(d < width)[None, :])


@triton.jit
def _on_grid(score):
    """Return round(score · 2^16), halves to even, as torch rounds."""
    scaled = score * _GRID
    below = tl.floor(scaled)
    part, whole = scaled - below, below.to(tl.int32)
    return whole + ((part > 0.5) | ((part == 0.5) & (whole % 2 != 0))).to(tl.int32)


@triton.jit
def _norm(x, inside, weight, bias, eps, d, width):
    """Return the LayerNorm of a tile (…,WIDTH) in float32; zeros beyond the width."""
    mean = tl.sum(x, axis=1)[:, None] / width
    centred = tl.where(inside[None, :], x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / width
    y = centred / tl.sqrt(variance + eps) * tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        y += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)[None, :]
    return y


@triton.jit
def candidates_of(
    x, norm_weight, norm_bias, projection, eps, row, j, count, scores, width,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Return the scores of one token's candidates, and their grid scores: `j` has parent `row`, of `count` streams.

    log p = max(logsigmoid(W_f · LN_f(x)), -20); candidate 2i is a fork copy, 2i + 1 the kept stream.
    """
    d = tl.arange(0, WIDTH)
    present, inside = j < 2 * count, d < width
    own = tl.load(x + row[:, None] * width + d[None, :], mask=present[:, None] & inside[None, :], other=0.0)
    normed = _norm(own.to(tl.float32), inside, norm_weight, norm_bias, eps, d, width)
    weight = tl.load(projection + (j % 2)[:, None] * width + d[None, :], mask=inside[None, :], other=0.0)
    s = tl.sum(normed.to(own.dtype).to(tl.float32) * weight.to(tl.float32), axis=1)
    log_p = tl.maximum(tl.minimum(s, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(s))), _LOWEST)
    score = tl.load(scores + row, mask=present, other=0.0) + log_p
    return score, tl.where(j < 2 * count - 1, _on_grid(score), _NO_CANDIDATE)


@triton.jit
def count_earlier(grid, left, pages, cache_scores, PAGE: tl.constexpr, CANDIDATES: tl.constexpr, PRIOR: tl.constexpr):
    """Count for each candidate those of the `left` streams before it that are not lower; ties go to the left."""
    earlier = tl.zeros([CANDIDATES], tl.int32)
    for first in range(0, left, PRIOR):
        stream = first + tl.arange(0, PRIOR)
        slot = tl.load(pages + stream // PAGE, mask=stream < left, other=0) * PAGE + stream % PAGE
        for side in tl.static_range(2):
            prior = tl.load(cache_scores + slot * 2 + side, mask=stream < left, other=_NO_CANDIDATE)
            earlier += tl.sum((prior[:, None] >= grid[None, :]).to(tl.int32), axis=0)
    return earlier


@triton.jit
def count_siblings(grid, free, j):
    """Count for each of a token's candidates the free ones that are higher."""
    higher = (grid[:, None] > grid[None, :]) | ((grid[:, None] == grid[None, :]) & (j[:, None] < j[None, :]))
    return tl.sum((higher & free[:, None]).to(tl.int32), axis=0)


@triton.jit
def write_angles(position, frequencies, cosines, sines, row, present, half, HALF: tl.constexpr):
    """Write the cosines and sines of the rotary angles of positions, one per row."""
    i = tl.arange(0, HALF)
    angle = position[:, None] * tl.load(frequencies + i, mask=i < half, other=0.0)[None, :]
    mask = present[:, None] & (i < half)[None, :]
    tl.store(cosines + row[:, None] * half + i[None, :], tl.cos(angle), mask=mask)
    tl.store(sines + row[:, None] * half + i[None, :], tl.sin(angle), mask=mask)


@triton.jit
def _select(
    x, norm_weight, norm_bias, projection, eps, starts, counts, lengths, slots, scores, table, lanes, cache_scores,
    next_streams, time, kappas, block_size, next_counts, chosen, chosen_scores, tally, table_stride, width,
    PAGE: tl.constexpr, CANDIDATES: tl.constexpr, PRIOR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    wait_for_previous()
    b = tl.program_id(0)
    lane, count, start = tl.load(lanes + b), tl.load(counts + b), tl.load(starts + b)
    t, left = tl.load(time + b), tl.load(lengths + b) - count
    if lane < 0:
        tl.store(next_counts + b, 0)
        return
    j = tl.arange(0, CANDIDATES)
    row = start + j // 2
    present, free, forced = j < 2 * count, j < 2 * count - 1, j == 2 * count - 1
    score, grid = candidates_of(x, norm_weight, norm_bias, projection, eps, row, j, count, scores, width, WIDTH)
    earlier = count_earlier(grid, left, table + lane * table_stride, cache_scores, PAGE, CANDIDATES, PRIOR)
    siblings = count_siblings(grid, free, j)

    # rule (a): a running top-k; rule (b): within the budget at every length
    fork_budget = ((t + 1).to(tl.int64) * tl.load(kappas + lane) + block_size - 1) // block_size - (t + 1)
    alive = tl.load(next_streams + lane) - t
    passing = tl.sum((free & (earlier + siblings < fork_budget)).to(tl.int32))
    gained = tl.minimum(alive + passing, fork_budget.to(tl.int32)) - alive
    keep = (free & (siblings < gained)) | forced

    slot = tl.load(slots + row, mask=present, other=0)
    tl.store(cache_scores + slot * 2 + j % 2, grid, mask=present)
    at = b * CANDIDATES + tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(chosen + at, j, mask=keep)
    tl.store(chosen_scores + at, score, mask=keep)
    tl.store(next_counts + b, gained + 1)
    tl.atomic_add(tally, tl.sum((keep & (j % 2 == 0)).to(tl.int64)))
    tl.atomic_add(tally + 1, tl.sum((present & (j % 2 == 1) & (keep == 0)).to(tl.int64)))


@triton.jit
def _gather(
    x, fork_embedding, starts, chosen, chosen_scores, lanes, time, next_streams, next_table, frequencies,
    out, next_starts, next_counts, next_lengths, live, slots, scores, cosines, sines, table_stride, width, half,
    norm_weight, norm_bias, eps, normed,
    PAGE: tl.constexpr, CANDIDATES: tl.constexpr, BATCH: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    wait_for_previous()
    b, others = tl.program_id(0), tl.arange(0, BATCH)
    count = tl.load(next_counts + b)
    first = tl.sum(tl.load(next_counts + others, mask=others < b, other=0))
    tl.store(next_starts + b, first)
    if b == tl.num_programs(0) - 1:
        tl.store(live, first + count)
    if count == 0:
        return
    lane = tl.load(lanes + b)
    left = tl.load(next_streams + lane)
    tl.store(next_streams + lane, left + count)
    tl.store(next_lengths + b, left + count)
    k, d = tl.arange(0, CANDIDATES), tl.arange(0, WIDTH)
    present, inside = k < count, d < width
    candidate = tl.load(chosen + b * CANDIDATES + k, mask=present, other=0)
    parent = tl.load(starts + b) + candidate // 2
    row = first + k
    mask = present[:, None] & inside[None, :]
    vector = tl.load(x + parent[:, None] * width + d[None, :], mask=mask, other=0.0)
    fork = tl.load(fork_embedding + d, mask=inside, other=0.0).to(vector.dtype)
    vector = tl.where((candidate % 2 == 0)[:, None], vector + fork[None, :], vector)
    tl.store(out + row[:, None] * width + d[None, :], vector, mask=mask)
    y = _norm(vector.to(tl.float32), inside, norm_weight, norm_bias, eps, d, width)
    tl.store(normed + row[:, None] * width + d[None, :], y.to(normed.dtype.element_ty), mask=mask)
    tl.store(scores + row, tl.load(chosen_scores + b * CANDIDATES + k, mask=present, other=0.0), mask=present)
    stream = left + k
    page = tl.load(next_table + lane * table_stride + stream // PAGE, mask=present, other=0)
    tl.store(slots + row, page * PAGE + stream % PAGE, mask=present)
    position = tl.load(time + b) + (k + 1).to(tl.float32) / count
    write_angles(position, frequencies, cosines, sines, row, present, half, HALF)


@triton.jit
def _average(
    x, starts, counts, scores, norm_weight, norm_bias, eps, out, width,
    RIGHTMOST: tl.constexpr, NORM_FIRST: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    wait_for_previous()
    b, d = tl.program_id(0), tl.arange(0, WIDTH)
    start, count = tl.load(starts + b), tl.load(counts + b)
    inside = d < width
    total = tl.zeros([1, WIDTH], tl.float32)
    for row in range(start, start + count):
        vector = tl.load(x + row * width + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        if NORM_FIRST:
            vector = _norm(vector, inside, norm_weight, norm_bias, eps, d, width).to(x.dtype.element_ty).to(tl.float32)
        if RIGHTMOST:
            total = vector
        else:
            total += vector * tl.exp(tl.load(scores + row))
    if NORM_FIRST:
        y = total
    else:
        y = _norm(total.to(x.dtype.element_ty).to(tl.float32), inside, norm_weight, norm_bias, eps, d, width)
    kept = inside[None, :] & (count > 0)
    tl.store(out + b * width + d[None, :], tl.where(kept, y, 0.0).to(out.dtype.element_ty), mask=inside[None, :])
