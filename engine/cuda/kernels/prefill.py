"""A fork of many tokens at once, one program a token; `engine.cuda.kernels.forking` is the same for one token a place.

SPEC.md, "Fork", "Selection rules" and "Positions". Letters: R requests that there may be, T tokens that there may be,
those of all requests end to end; M streams that there may be, C candidates of one token, D model width, H head width.
Segment 0 has one row a token: its rows say which tokens there are.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.forking import candidates_of, count_prior, count_siblings, write_angles
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.model import ForkingBlock

_PRIOR_AT_ONCE = 512
_TOKENS_AT_ONCE = 256
_PLENTY = tl.constexpr(1 << 30)
"""Room where no length limits it."""


@dataclass(frozen=True)
class Bubbles:
    """The streams of each new token in one segment, laid end to end."""

    start: Tensor
    """(T,) int32, the first row of each."""
    count: Tensor
    """(T,) int32, its rows."""


@dataclass(frozen=True)
class Candidates:
    """The candidates of each new token at one fork."""

    score: Tensor
    """(T,C) float32, their cumulative scores."""
    grid: Tensor
    """(T,C) int32, those that are compared; `NO_CANDIDATE` where it is forced or none is."""
    siblings: Tensor
    """(T,C) int32, how many of the token's own are higher."""
    passing: Tensor
    """(T,) int32, how many of them pass rule (a)."""
    place: Tensor
    """(T,) int32, the first of the token's survivors among those of its request."""

    @classmethod
    def empty(cls, tokens: int, candidates: int, device: torch.device) -> Self:
        """Room for them."""
        # each by itself: where a tensor begins is part of what a kernel is compiled for
        grid, siblings = (torch.empty((tokens, candidates), dtype=torch.int32, device=device) for _ in range(2))
        passing, place = (torch.empty(tokens, dtype=torch.int32, device=device) for _ in range(2))
        return cls(torch.empty((tokens, candidates), device=device), grid, siblings, passing, place)


def begin(
    embedding: Tensor, ids: Tensor, request: Tensor, position: Tensor, rows: Rows, frequencies: Tensor, x: Tensor
) -> None:
    """One stream for each token `ids` (T,) int32: its vector in x (T,D), its row in `rows`, that know of how many.

    `request` (T,) int32 is each token's, `position` (T,) int32 its place there; `frequencies` (H/2,) are of the rotary
    angles.
    """
    _begin[(len(ids),)](
        embedding, ids, request, position, rows.table, frequencies, rows.live, rows.start, rows.count, rows.length,
        x, rows.slot, rows.score, rows.cos, rows.sin, rows.table.stride(0), x.shape[1], frequencies.shape[0],
        PAGE=rows.page_size, WIDTH=triton.next_power_of_2(x.shape[1]),
        HALF=triton.next_power_of_2(frequencies.shape[0]),
    )  # fmt: skip


def weigh(
    block: ForkingBlock, x: Tensor, bubbles: Bubbles, tokens: Rows, rows: Rows, cached: Tensor, into: Candidates
) -> None:
    """Score the candidates of streams x (M,D); their grid scores also go to the cache's pages, `cached` (slots,2)."""
    norm, (most, candidates) = block.forking_ln, into.grid.shape
    _weigh[(most,)](
        x, norm.weight, norm.bias, block.forking_score.weight, norm.eps, tokens.live, bubbles.start, bubbles.count,
        rows.slot, rows.score, cached, into.score, into.grid, x.shape[1],
        CANDIDATES=candidates, WIDTH=triton.next_power_of_2(x.shape[1]), num_warps=8,
    )  # fmt: skip


def rank(
    bubbles: Bubbles, request: Tensor, tokens: Rows, rows: Rows, cached: Tensor, room: Tensor, into: Candidates
) -> None:
    """Rule (a): how many of each token's candidates have fewer higher ones to their left than there is `room` (T,).

    `request` (T,) int32 is each token's; all candidates of this step stand in the pages already.
    """
    most, candidates = into.grid.shape
    _rank[(most,)](
        into.grid, tokens.live, bubbles.start, bubbles.count, request, rows.start, rows.count, rows.length, rows.table,
        cached, room, into.siblings, into.passing, rows.table.stride(0),
        PAGE=rows.page_size, CANDIDATES=candidates, PRIOR=_PRIOR_AT_ONCE,
    )  # fmt: skip


def fit(tokens: Rows, candidates: Candidates, room: Tensor, held: Tensor, after: Bubbles, into: Rows) -> None:
    """Rule (b): how many of those that pass rule (a) survive, that no length has more streams than its budget.

    `room` (T,) int32 are the streams that each token's length may have beyond one a token, `held` (R,) int32 those that
    each request has in the segment so far. Writes the streams of each token, and of each request in `into`.
    """
    _fit[(into.places,)](
        candidates.passing, room, held, tokens.start, tokens.count, tokens.length, after.count, candidates.place,
        into.count, into.length, AT_ONCE=_TOKENS_AT_ONCE,
    )  # fmt: skip


def spread(
    block: ForkingBlock, x: Tensor, before: Bubbles, candidates: Candidates, after: Bubbles, tokens: Rows,
    request: Tensor, position: Tensor, frequencies: Tensor, out: Tensor, into: Rows, tally: Tensor,
) -> None:  # fmt: skip
    """The survivors, as many of each token as `after` counts: the originals, and the highest of the others.

    Their vectors go to `out` (M,D), all else of them to `into` and `after`; `tally` (2,) int32 counts fork copies that
    survived and streams that were deleted. `position` (T,) is each token's place in its request.
    """
    most, alternatives = candidates.grid.shape
    _spread[(most,)](
        x, block.fork_embedding, candidates.score, candidates.siblings, candidates.place, tokens.live, tokens.start,
        before.start, before.count, after.start, after.count, request, position, frequencies,
        into.start, into.count, into.length, into.table, into.live,
        out, into.slot, into.score, into.cos, into.sin, tally, into.table.stride(0), x.shape[1], frequencies.shape[0],
        PAGE=into.page_size, PLACES=triton.next_power_of_2(into.places), CANDIDATES=alternatives,
        WIDTH=triton.next_power_of_2(x.shape[1]), HALF=triton.next_power_of_2(frequencies.shape[0]), num_warps=8,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def _begin(
    embedding, ids, requests, positions, table, frequencies, live, firsts, new, lengths,
    x, slots, scores, cosines, sines, table_stride, width, half,
    PAGE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token, d, row = tl.program_id(0), tl.arange(0, WIDTH), tl.program_id(0) + tl.arange(0, 1)
    if token >= tl.load(live):
        return
    request = tl.load(requests + token)
    stream = tl.load(lengths + request) - tl.load(new + request) + token - tl.load(firsts + request)
    tl.store(slots + token, tl.load(table + request * table_stride + stream // PAGE) * PAGE + stream % PAGE)
    tl.store(scores + token, 0.0)
    write_angles(tl.load(positions + row) + 1.0, frequencies, cosines, sines, row, row >= 0, half, HALF)
    vector = tl.load(embedding + tl.load(ids + token).to(tl.int64) * width + d, mask=d < width)
    tl.store(x + token * width + d, vector, mask=d < width)


@triton.jit
def _weigh(
    x, norm_weight, norm_bias, projection, eps, live, starts, counts, slots, scores, cached, out_scores, out_grid,
    width, CANDIDATES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token, j = tl.program_id(0), tl.arange(0, CANDIDATES)
    if token >= tl.load(live):
        return
    count = tl.load(counts + token)
    row = tl.load(starts + token) + j // 2
    score, grid = candidates_of(x, norm_weight, norm_bias, projection, eps, row, j, count, scores, width, WIDTH)
    tl.store(out_scores + token * CANDIDATES + j, score)
    tl.store(out_grid + token * CANDIDATES + j, grid)
    present = j < 2 * count
    tl.store(cached + tl.load(slots + row, mask=present, other=0) * 2 + j % 2, grid, mask=present)


@triton.jit(do_not_specialize=["table_stride"])
def _rank(
    grids, live, starts, counts, requests, row_starts, row_counts, lengths, table, cached, rooms, siblings, passing,
    table_stride, PAGE: tl.constexpr, CANDIDATES: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    token, j = tl.program_id(0), tl.arange(0, CANDIDATES)
    if token >= tl.load(live):
        return
    request = tl.load(requests + token)
    free = j < 2 * tl.load(counts + token) - 1
    grid = tl.load(grids + token * CANDIDATES + j)
    held = tl.load(lengths + request) - tl.load(row_counts + request)
    left = held + tl.load(starts + token) - tl.load(row_starts + request)
    earlier = count_prior(grid, left, table + request * table_stride, cached, PAGE, CANDIDATES, PRIOR)
    own = count_siblings(grid, free, j)
    tl.store(siblings + token * CANDIDATES + j, own)
    tl.store(passing + token, tl.sum((free & (earlier + own < tl.load(rooms + token))).to(tl.int32)))


@triton.jit
def _lower(a, b):
    return tl.minimum(a, b)


@triton.jit
def _fit(
    passing, rooms, held, firsts, new, lengths, counts, places, row_counts, row_lengths, AT_ONCE: tl.constexpr
):  # fmt: skip
    request, i = tl.program_id(0), tl.arange(0, AT_ONCE)
    first, tokens, before = tl.load(firsts + request), tl.load(new + request), tl.load(held + request)
    passed, rows = 0, 0
    lowest = before - (tl.load(lengths + request) - tokens)
    for start in range(0, tokens, AT_ONCE):
        token, there = first + start + i, start + i < tokens
        gain = tl.load(passing + token, mask=there, other=0)
        room = tl.load(rooms + token, mask=there, other=_PLENTY)
        earlier_room = tl.load(rooms + token - 1, mask=there & (start + i > 0), other=_PLENTY)
        total = passed + tl.cumsum(gain, 0)
        limit = tl.minimum(lowest, tl.associative_scan(room - total, 0, _lower))
        earlier_limit = tl.minimum(lowest, tl.associative_scan(earlier_room - (total - gain), 0, _lower))
        count = tl.where(there, gain + limit - earlier_limit + 1, 0)
        tl.store(counts + token, count, mask=there)
        tl.store(places + token, rows + tl.cumsum(count, 0) - count, mask=there)
        passed, rows, lowest = passed + tl.sum(gain), rows + tl.sum(count), tl.min(limit)
    tl.store(row_counts + request, rows)
    tl.store(row_lengths + request, before + rows)


@triton.jit(do_not_specialize=["table_stride"])
def _spread(
    x, fork_embedding, candidate_scores, siblings, places, tokens, firsts, starts, counts, next_starts, next_counts,
    requests, positions, frequencies, row_starts, row_counts, lengths, table, live,
    out, slots, scores, cosines, sines, tally, table_stride, width, half,
    PAGE: tl.constexpr, PLACES: tl.constexpr, CANDIDATES: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token, j, d = tl.program_id(0), tl.arange(0, CANDIDATES), tl.arange(0, WIDTH)
    if token >= tl.load(tokens):
        return
    request, others = tl.load(requests + token), tl.arange(0, PLACES)
    row_start = tl.sum(tl.load(row_counts + others, mask=others < request, other=0))
    place, new = tl.load(places + token), tl.load(row_counts + request)
    tl.store(next_starts + token, row_start + place)
    if token == tl.load(firsts + request):
        tl.store(row_starts + request, row_start)
    if token == tl.load(tokens) - 1:
        tl.store(live, row_start + new)
    count, survivors = tl.load(counts + token), tl.load(next_counts + token)
    present, forced = j < 2 * count, j == 2 * count - 1
    free = j < 2 * count - 1
    keep = (free & (tl.load(siblings + token * CANDIDATES + j) < survivors - 1)) | forced
    k = tl.cumsum(keep.to(tl.int32), 0) - 1  # each survivor's place in its bubble
    row, there = row_start + place + k, d < width
    both = keep[:, None] & there[None, :]
    parent = tl.load(starts + token) + j // 2
    vector = tl.load(x + parent[:, None] * width + d[None, :], mask=both, other=0.0)
    mark = tl.load(fork_embedding + d, mask=there, other=0.0).to(vector.dtype)
    vector = tl.where((j % 2 == 0)[:, None], vector + mark[None, :], vector)
    tl.store(out + row[:, None] * width + d[None, :], vector, mask=both)
    tl.store(scores + row, tl.load(candidate_scores + token * CANDIDATES + j), mask=keep)
    stream = tl.load(lengths + request) - new + place + k
    page = tl.load(table + request * table_stride + stream // PAGE, mask=keep, other=0)
    tl.store(slots + row, page * PAGE + stream % PAGE, mask=keep)
    position = tl.load(positions + token) + (k + 1).to(tl.float32) / survivors
    write_angles(position, frequencies, cosines, sines, row, keep, half, HALF)
    tl.atomic_add(tally, tl.sum((keep & (j % 2 == 0)).to(tl.int32)))
    tl.atomic_add(tally + 1, tl.sum((present & (j % 2 == 1) & (keep == 0)).to(tl.int32)))
