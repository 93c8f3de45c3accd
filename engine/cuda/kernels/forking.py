"""A step's beginning, its forks and its end, where every place has one new token.

SPEC.md, "Fork", "Selection rules", "Positions" and "Output averaging".
Letters: B places of the batch, M streams that there may be, C candidates of one place, D model width, H head width.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from thoughtbubbles.engine.cache.pages import NO_CANDIDATE
from thoughtbubbles.engine.cuda.kernels.lanes import Lanes
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.model import ForkingBlock
from thoughtbubbles.model.forking import LOWEST_LOG_P
from thoughtbubbles.model.selection import GRID

_GRID = tl.constexpr(float(GRID))
_LOWEST = tl.constexpr(LOWEST_LOG_P)
_NO_CANDIDATE = tl.constexpr(NO_CANDIDATE)
_PRIOR_AT_ONCE = 512


@dataclass(frozen=True)
class Choice:
    """The candidates that survived a fork, of one new token a place."""

    candidate: Tensor
    """(B,C) int32, which of its candidates each of a place's streams is; what stands beyond their count is nothing."""
    score: Tensor
    """(B,C) float32, their cumulative scores."""

    @classmethod
    def empty(cls, places: int, candidates: int, device: torch.device) -> Self:
        """Room for a choice."""
        shape = (places, candidates)
        return cls(torch.empty(shape, dtype=torch.int32, device=device), torch.empty(shape, device=device))


def begin(
    embedding: Tensor, lanes: Lanes, time: Tensor, rows: Rows, frequencies: Tensor, x: Tensor, norm: nn.LayerNorm,
    normed: Tensor,
) -> None:  # fmt: skip
    """One stream for the newest token of each lane that has a place: its vector in x (M,D), its row in `rows`.

    LN(x) goes to `normed` (M,D). Writes to `time` (B,) which token of its sequence that is. `frequencies` (H/2,) are of
    the rotary angles.
    """
    _begin[(rows.places,)](
        embedding, lanes.token, lanes.tokens, lanes.streams[0], rows.table, rows.lane, frequencies,
        time, x, rows.start, rows.count, rows.length, rows.live, rows.slot, rows.score, rows.cos, rows.sin,
        rows.table.stride(0), x.shape[1], frequencies.shape[0], norm.weight, norm.bias, norm.eps, normed,
        PAGE=rows.page_size, PLACES=triton.next_power_of_2(rows.places),
        WIDTH=triton.next_power_of_2(x.shape[1]), HALF=triton.next_power_of_2(frequencies.shape[0]),
    )  # fmt: skip


def choose(
    block: ForkingBlock, x: Tensor, rows: Rows, scores: Tensor, lanes: Lanes, time: Tensor, into: Rows, segment: int,
    block_size: int, choice: Choice, tally: Tensor,
) -> None:  # fmt: skip
    """The causal rule for the candidates that the streams x (M,D) make on their way into a segment, `into`.

    Writes the choice, each place's count in `into`, the candidates' grid scores into the cache's pages, `scores`
    (slots,2), and adds to `tally` (2,) the fork copies that survived and the streams that were deleted.
    """
    norm = block.forking_ln
    _choose[(rows.places,)](
        x, norm.weight, norm.bias, block.forking_score.weight, norm.eps, rows.start, rows.count, rows.length, rows.slot,
        rows.score, rows.table, rows.lane, scores, lanes.streams[segment], time, lanes.kappa, block_size,
        into.count, choice.candidate, choice.score, tally, rows.table.stride(0), x.shape[1],
        PAGE=rows.page_size, CANDIDATES=choice.candidate.shape[1], PRIOR=_PRIOR_AT_ONCE,
        WIDTH=triton.next_power_of_2(x.shape[1]), num_warps=8,
    )  # fmt: skip


def settle(
    block: ForkingBlock, x: Tensor, rows: Rows, lanes: Lanes, time: Tensor, choice: Choice, into: Rows, segment: int,
    frequencies: Tensor, out: Tensor, norm: nn.LayerNorm, normed: Tensor,
) -> None:  # fmt: skip
    """The chosen candidates' streams, out (M,D), and their rows in `into`: places, scores, angles, slots.

    LN(out) goes to `normed` (M,D).
    """
    _settle[(rows.places,)](
        x, block.fork_embedding, rows.start, choice.candidate, choice.score, rows.lane, time, lanes.streams[segment],
        into.table, frequencies, out, into.start, into.count, into.length, into.live, into.slot, into.score, into.cos,
        into.sin, into.table.stride(0), x.shape[1], frequencies.shape[0], norm.weight, norm.bias, norm.eps, normed,
        PAGE=rows.page_size, CANDIDATES=choice.candidate.shape[1], PLACES=triton.next_power_of_2(rows.places),
        WIDTH=triton.next_power_of_2(x.shape[1]), HALF=triton.next_power_of_2(frequencies.shape[0]), num_warps=8,
    )  # fmt: skip


def average(x: Tensor, rows: Rows, norm: nn.LayerNorm, out: Tensor, *, rightmost: bool, norm_first: bool) -> None:
    """Each place's streams x (M,D) as one vector, normalised: out (B,D), zeros where no one is.

    Σ P_j x_j, or the original alone where `rightmost`; `norm_first` norms each stream instead of the sum.
    """
    _average[(rows.places,)](
        x, rows.start, rows.count, rows.score, norm.weight, norm.bias, norm.eps, out, x.shape[1],
        RIGHTMOST=rightmost, NORM_FIRST=norm_first, WIDTH=triton.next_power_of_2(x.shape[1]),
    )  # fmt: skip


@triton.jit
def _begin(
    embedding, token, tokens, held, table, lanes, frequencies,
    time, x, starts, counts, lengths, live, slots, scores, cosines, sines, table_stride, width, half,
    norm_weight, norm_bias, eps, normed,
    PAGE: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    place, others = tl.program_id(0), tl.arange(0, PLACES)
    lane = tl.load(lanes + place)
    earlier = tl.load(lanes + others, mask=others < place, other=-1)
    row = tl.sum((earlier >= 0).to(tl.int32))
    present = (lane >= 0).to(tl.int32)
    tl.store(starts + place, row)
    tl.store(counts + place, present)
    if place == tl.num_programs(0) - 1:
        tl.store(live, row + present)
    if lane < 0:
        return
    t, n = tl.load(tokens + lane), tl.load(held + lane)
    tl.store(time + place, t)
    tl.store(tokens + lane, t + 1)
    tl.store(held + lane, n + 1)
    tl.store(lengths + place, n + 1)
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
    """round(score · 2^16), halves to even, as torch rounds."""
    scaled = score * _GRID
    below = tl.floor(scaled)
    part, whole = scaled - below, below.to(tl.int32)
    return whole + ((part > 0.5) | ((part == 0.5) & (whole % 2 != 0))).to(tl.int32)


@triton.jit
def _norm(x, there, weight, bias, eps, d, width):
    """LayerNorm of a tile (…,WIDTH) in float32; zeros beyond the width."""
    mean = tl.sum(x, axis=1)[:, None] / width
    centred = tl.where(there[None, :], x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / width
    y = centred / tl.sqrt(variance + eps) * tl.load(weight + d, mask=there, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        y += tl.load(bias + d, mask=there, other=0.0).to(tl.float32)[None, :]
    return y


@triton.jit
def candidates_of(
    x, norm_weight, norm_bias, projection, eps, row, j, count, scores, width,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Scores of one token's candidates, and those on the grid: candidate `j` has parent `row`, of `count` streams.

    log p = max(logsigmoid(W_f · LN_f(x)), -20); candidate 2i is a fork copy, 2i + 1 the stream kept.
    """
    d = tl.arange(0, WIDTH)
    present, there = j < 2 * count, d < width
    own = tl.load(x + row[:, None] * width + d[None, :], mask=present[:, None] & there[None, :], other=0.0)
    normed = _norm(own.to(tl.float32), there, norm_weight, norm_bias, eps, d, width)
    weight = tl.load(projection + (j % 2)[:, None] * width + d[None, :], mask=there[None, :], other=0.0)
    s = tl.sum(normed.to(own.dtype).to(tl.float32) * weight.to(tl.float32), axis=1)
    log_p = tl.maximum(tl.minimum(s, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(s))), _LOWEST)
    score = tl.load(scores + row, mask=present, other=0.0) + log_p
    return score, tl.where(j < 2 * count - 1, _on_grid(score), _NO_CANDIDATE)


@triton.jit
def count_prior(grid, left, pages, cached, PAGE: tl.constexpr, CANDIDATES: tl.constexpr, PRIOR: tl.constexpr):
    """How many candidates of the `left` streams before are not lower: of equals the one further left is the higher."""
    earlier = tl.zeros([CANDIDATES], tl.int32)
    for first in range(0, left, PRIOR):
        stream = first + tl.arange(0, PRIOR)
        slot = tl.load(pages + stream // PAGE, mask=stream < left, other=0) * PAGE + stream % PAGE
        for side in tl.static_range(2):
            prior = tl.load(cached + slot * 2 + side, mask=stream < left, other=_NO_CANDIDATE)
            earlier += tl.sum((prior[:, None] >= grid[None, :]).to(tl.int32), axis=0)
    return earlier


@triton.jit
def count_siblings(grid, free, j):
    """How many of a token's own free candidates are higher than each."""
    higher = (grid[:, None] > grid[None, :]) | ((grid[:, None] == grid[None, :]) & (j[:, None] < j[None, :]))
    return tl.sum((higher & free[:, None]).to(tl.int32), axis=0)


@triton.jit
def write_angles(position, frequencies, cosines, sines, row, present, half, HALF: tl.constexpr):
    """Cosines and sines of the rotary angles of positions, one a row."""
    i = tl.arange(0, HALF)
    angle = position[:, None] * tl.load(frequencies + i, mask=i < half, other=0.0)[None, :]
    near = present[:, None] & (i < half)[None, :]
    tl.store(cosines + row[:, None] * half + i[None, :], tl.cos(angle), mask=near)
    tl.store(sines + row[:, None] * half + i[None, :], tl.sin(angle), mask=near)


@triton.jit
def _choose(
    x, norm_weight, norm_bias, projection, eps, starts, counts, lengths, slots, scores, table, lanes, cached, next_held,
    time, kappas, block_size, next_counts, chosen, chosen_scores, tally, table_stride, width,
    PAGE: tl.constexpr, CANDIDATES: tl.constexpr, PRIOR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    lane, count, start = tl.load(lanes + place), tl.load(counts + place), tl.load(starts + place)
    t, held = tl.load(time + place), tl.load(lengths + place) - count
    if lane < 0:
        tl.store(next_counts + place, 0)
        return
    j = tl.arange(0, CANDIDATES)
    row = start + j // 2
    present, free, forced = j < 2 * count, j < 2 * count - 1, j == 2 * count - 1
    score, grid = candidates_of(x, norm_weight, norm_bias, projection, eps, row, j, count, scores, width, WIDTH)
    earlier = count_prior(grid, held, table + lane * table_stride, cached, PAGE, CANDIDATES, PRIOR)
    siblings = count_siblings(grid, free, j)

    # rule (a), a running top-k, then rule (b), within the budget at every length
    room = ((t + 1).to(tl.int64) * tl.load(kappas + lane) + block_size - 1) // block_size - (t + 1)
    alive = tl.load(next_held + lane) - t
    passing = tl.sum((free & (earlier + siblings < room)).to(tl.int32))
    gained = tl.minimum(alive + passing, room.to(tl.int32)) - alive
    keep = (free & (siblings < gained)) | forced

    slot = tl.load(slots + row, mask=present, other=0)
    tl.store(cached + slot * 2 + j % 2, grid, mask=present)
    at = place * CANDIDATES + tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(chosen + at, j, mask=keep)
    tl.store(chosen_scores + at, score, mask=keep)
    tl.store(next_counts + place, gained + 1)
    tl.atomic_add(tally, tl.sum((keep & (j % 2 == 0)).to(tl.int64)))
    tl.atomic_add(tally + 1, tl.sum((present & (j % 2 == 1) & (keep == 0)).to(tl.int64)))


@triton.jit
def _settle(
    x, fork_embedding, starts, chosen, chosen_scores, lanes, time, next_held, next_table, frequencies,
    out, next_starts, next_counts, next_lengths, live, slots, scores, cosines, sines, table_stride, width, half,
    norm_weight, norm_bias, eps, normed,
    PAGE: tl.constexpr, CANDIDATES: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    place, others = tl.program_id(0), tl.arange(0, PLACES)
    count = tl.load(next_counts + place)
    first = tl.sum(tl.load(next_counts + others, mask=others < place, other=0))
    tl.store(next_starts + place, first)
    if place == tl.num_programs(0) - 1:
        tl.store(live, first + count)
    if count == 0:
        return
    lane = tl.load(lanes + place)
    held = tl.load(next_held + lane)
    tl.store(next_held + lane, held + count)
    tl.store(next_lengths + place, held + count)
    k, d = tl.arange(0, CANDIDATES), tl.arange(0, WIDTH)
    present, there = k < count, d < width
    candidate = tl.load(chosen + place * CANDIDATES + k, mask=present, other=0)
    parent = tl.load(starts + place) + candidate // 2
    row = first + k
    both = present[:, None] & there[None, :]
    vector = tl.load(x + parent[:, None] * width + d[None, :], mask=both, other=0.0)
    mark = tl.load(fork_embedding + d, mask=there, other=0.0).to(vector.dtype)
    vector = tl.where((candidate % 2 == 0)[:, None], vector + mark[None, :], vector)
    tl.store(out + row[:, None] * width + d[None, :], vector, mask=both)
    y = _norm(vector.to(tl.float32), there, norm_weight, norm_bias, eps, d, width)
    tl.store(normed + row[:, None] * width + d[None, :], y.to(normed.dtype.element_ty), mask=both)
    tl.store(scores + row, tl.load(chosen_scores + place * CANDIDATES + k, mask=present, other=0.0), mask=present)
    stream = held + k
    page = tl.load(next_table + lane * table_stride + stream // PAGE, mask=present, other=0)
    tl.store(slots + row, page * PAGE + stream % PAGE, mask=present)
    position = tl.load(time + place) + (k + 1).to(tl.float32) / count
    write_angles(position, frequencies, cosines, sines, row, present, half, HALF)


@triton.jit
def _average(
    x, starts, counts, scores, norm_weight, norm_bias, eps, out, width,
    RIGHTMOST: tl.constexpr, NORM_FIRST: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    place, d = tl.program_id(0), tl.arange(0, WIDTH)
    start, count = tl.load(starts + place), tl.load(counts + place)
    there = d < width
    total = tl.zeros([1, WIDTH], tl.float32)
    for row in range(start, start + count):
        vector = tl.load(x + row * width + d, mask=there, other=0.0).to(tl.float32)[None, :]
        if NORM_FIRST:
            vector = _norm(vector, there, norm_weight, norm_bias, eps, d, width).to(x.dtype.element_ty).to(tl.float32)
        if RIGHTMOST:
            total = vector
        else:
            total += vector * tl.exp(tl.load(scores + row))
    if NORM_FIRST:
        y = total
    else:
        y = _norm(total.to(x.dtype.element_ty).to(tl.float32), there, norm_weight, norm_bias, eps, d, width)
    kept = there[None, :] & (count > 0)
    tl.store(out + place * width + d[None, :], tl.where(kept, y, 0.0).to(out.dtype.element_ty), mask=there[None, :])
