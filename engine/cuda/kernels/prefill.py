"""A fork of many tokens at once, one program per token; `engine.cuda.kernels.forking` forks one token per batch slot.

SPEC.md, "Fork", "Selection rules" and "Positions". Letters: B batch slots, T tokens that there may be, those of all
requests end to end; M rows that there may be, C candidates of one token, D model width, H head width.
Segment 0 has one row per token, so its rows, `tokens`, say which tokens there are.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.forking import (
    candidates_of,
    count_earlier,
    count_siblings,
    read_earlier,
    read_scoring,
    write_angles,
)  # fmt: skip
from thoughtbubbles.engine.cuda.kernels.overlap import overlapped, start_next, wait_for_previous
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.model import ForkingBlock

_PRIOR_AT_ONCE = 512
_TOKENS_AT_ONCE = 1024
_UNLIMITED = tl.constexpr(1 << 30)
"""The fork budget where no token limits it."""


@dataclass(frozen=True)
class Bubbles:
    """The streams of each new token in one segment, end to end."""

    start: Tensor
    """(T,) int32, the first row of each token."""
    count: Tensor
    """(T,) int32, its rows."""


@dataclass(frozen=True)
class Candidates:
    """The candidates of each new token at one fork."""

    score: Tensor
    """(T,C) float32, their cumulative scores."""
    grid: Tensor
    """(T,C) int32, their grid scores; `NO_CANDIDATE` for a forced one and where there is none."""
    siblings: Tensor
    """(T,C) int32, how many of the token's own are higher."""
    passing: Tensor
    """(T,) int32, how many of them pass rule (a)."""
    offset: Tensor
    """(T,) int32, the index of the token's first survivor among those of its request."""

    @classmethod
    def empty(cls, tokens: int, candidates: int, device: torch.device) -> Self:
        """Return memory for them."""
        # one allocation each: Triton compiles a kernel again if the alignment of a pointer differs
        grid, siblings = (torch.empty((tokens, candidates), dtype=torch.int32, device=device) for _ in range(2))
        passing, offset = (torch.empty(tokens, dtype=torch.int32, device=device) for _ in range(2))
        return cls(torch.empty((tokens, candidates), device=device), grid, siblings, passing, offset)


def embed(
    *, embedding: Tensor, ids: Tensor, request: Tensor, position: Tensor, rows: Rows, frequencies: Tensor, x: Tensor
) -> None:
    """Make one stream of each token `ids` (T,) int32: its embedding in x (T,D), its row in `rows`.

    `rows` says how many tokens there are. `request` (T,) int32 is each token's batch slot, `position` (T,) int32 its
    index in its sequence; `frequencies` (H/2,) are the rotary ones.
    """
    _embed[(len(ids),)](
        embedding=embedding, ids=ids, requests=request, positions=position, table=rows.table, frequencies=frequencies,
        live=rows.live, firsts=rows.start, new=rows.count, lengths=rows.length, x=x, slots=rows.slot, scores=rows.score,
        cosines=rows.cos, sines=rows.sin, table_stride=rows.table.stride(0), width=x.shape[1],
        half=frequencies.shape[0], PAGE=rows.page_size, WIDTH=triton.next_power_of_2(x.shape[1]),
        HALF=triton.next_power_of_2(frequencies.shape[0]),
    )  # fmt: skip


def score(
    *, block: ForkingBlock, x: Tensor, bubbles: Bubbles, tokens: Rows, rows: Rows, cached: Tensor, into: Candidates
) -> None:
    """Score the candidates of streams x (M,D); their grid scores also go to the cache's pages, `cached` (slots,2)."""
    norm, (most, candidates) = block.forking_ln, into.grid.shape
    _score[(most,)](
        x=x, norm_weight=norm.weight, norm_bias=norm.bias, projection=block.forking_score.weight, eps=norm.eps,
        live=tokens.live, starts=bubbles.start, counts=bubbles.count, slots=rows.slot, scores=rows.score,
        cache_scores=cached, out_scores=into.score, out_grid=into.grid, width=x.shape[1], PARENTS=candidates // 2,
        WIDTH=triton.next_power_of_2(x.shape[1]), num_warps=8, **overlapped(x),
    )  # fmt: skip


def rank(
    *, bubbles: Bubbles, request: Tensor, tokens: Rows, rows: Rows, cached: Tensor, fork_budget: Tensor,
    into: Candidates,
) -> None:  # fmt: skip
    """Apply rule (a): count each token's candidates that have fewer higher ones to their left than `fork_budget` (T,).

    `request` (T,) int32 is each token's batch slot; `cached` already has the grid scores of all candidates of the step.
    """
    most, candidates = into.grid.shape
    _rank[(most,)](
        grids=into.grid, live=tokens.live, starts=bubbles.start, counts=bubbles.count, requests=request,
        row_starts=rows.start, row_counts=rows.count, lengths=rows.length, table=rows.table, cache_scores=cached,
        fork_budgets=fork_budget, siblings=into.siblings, passing=into.passing, table_stride=rows.table.stride(0),
        PAGE=rows.page_size, CANDIDATES=candidates, PRIOR=_PRIOR_AT_ONCE, **overlapped(into.grid),
    )  # fmt: skip


def fit(
    *, tokens: Rows, candidates: Candidates, fork_budget: Tensor, streams: Tensor, after: Bubbles, into: Rows
) -> None:
    """Apply rule (b): let as many of those that pass rule (a) survive as the budget at every length admits.

    `fork_budget` (T,) int32 is the number of forks that a sequence which ends with the token may keep, `streams` (B,)
    int32 the number that each request has in the segment so far. Writes the streams of each token to `after`, and of
    each request to `into`.
    """
    _fit[(into.batch_size,)](
        passing=candidates.passing, fork_budgets=fork_budget, streams=streams, firsts=tokens.start, new=tokens.count,
        lengths=tokens.length, counts=after.count, offsets=candidates.offset, row_counts=into.count,
        row_lengths=into.length, AT_ONCE=_TOKENS_AT_ONCE, num_warps=8, **overlapped(streams),
    )  # fmt: skip


def gather(
    *, block: ForkingBlock, x: Tensor, before: Bubbles, candidates: Candidates, after: Bubbles, tokens: Rows,
    request: Tensor, position: Tensor, frequencies: Tensor, out: Tensor, into: Rows, tally: Tensor,
) -> None:  # fmt: skip
    """Write the survivors, as many of each token as `after` counts: the original, and the highest of the others.

    Their vectors go to `out` (M,D), the rest to `into` and `after`. `tally` (2,) int32 counts fork copies that survived
    and streams that were deleted. `position` (T,) is each token's index in its sequence.
    """
    most, alternatives = candidates.grid.shape
    _gather[(most,)](
        x=x, fork_embedding=block.fork_embedding, candidate_scores=candidates.score, siblings=candidates.siblings,
        offsets=candidates.offset, tokens=tokens.live, firsts=tokens.start, starts=before.start, counts=before.count,
        next_starts=after.start, next_counts=after.count, requests=request, positions=position, frequencies=frequencies,
        row_starts=into.start, row_counts=into.count, lengths=into.length, table=into.table, live=into.live, out=out,
        slots=into.slot, scores=into.score, cosines=into.cos, sines=into.sin, tally=tally,
        table_stride=into.table.stride(0), width=x.shape[1], half=frequencies.shape[0], PAGE=into.page_size,
        BATCH=triton.next_power_of_2(into.batch_size), CANDIDATES=alternatives,
        WIDTH=triton.next_power_of_2(x.shape[1]), HALF=triton.next_power_of_2(frequencies.shape[0]), num_warps=8,
        **overlapped(x),
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def _embed(
    embedding, ids, requests, positions, table, frequencies, live, firsts, new, lengths,
    x, slots, scores, cosines, sines, table_stride, width, half,
    PAGE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    start_next()
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
def _score(
    x, norm_weight, norm_bias, projection, eps, live, starts, counts, slots, scores, cache_scores, out_scores, out_grid,
    width, PARENTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token, d = tl.program_id(0), tl.arange(0, WIDTH)
    i, j = tl.arange(0, PARENTS), tl.arange(0, 2 * PARENTS)
    scoring = read_scoring(norm_weight, norm_bias, projection, d, width)
    wait_for_previous()
    if token >= tl.load(live):
        return
    count, row = tl.load(counts + token), tl.load(starts + token) + i
    own = tl.load(x + row[:, None] * width + d[None, :], mask=(i < count)[:, None] & (d < width)[None, :], other=0.0)
    score = tl.load(scores + row, mask=i < count, other=0.0)
    score, grid = candidates_of(own, scoring, eps, score, count, width, PARENTS, WIDTH)
    tl.store(out_scores + token * 2 * PARENTS + j, score)
    tl.store(out_grid + token * 2 * PARENTS + j, grid)
    slot = tl.load(slots + row, mask=i < count, other=0)
    tl.store(cache_scores + tl.reshape(tl.join(2 * slot, 2 * slot + 1), [2 * PARENTS]), grid, mask=j < 2 * count)


@triton.jit(do_not_specialize=["table_stride"])
def _rank(
    grids, live, starts, counts, requests, row_starts, row_counts, lengths, table, cache_scores, fork_budgets, siblings,
    passing, table_stride, PAGE: tl.constexpr, CANDIDATES: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    wait_for_previous()
    token, j = tl.program_id(0), tl.arange(0, CANDIDATES)
    if token >= tl.load(live):
        return
    request = tl.load(requests + token)
    free = j < 2 * tl.load(counts + token) - 1
    grid = tl.load(grids + token * CANDIDATES + j)
    cached = tl.load(lengths + request) - tl.load(row_counts + request)
    left = cached + tl.load(starts + token) - tl.load(row_starts + request)
    pages = table + request * table_stride
    first = read_earlier(0, left, pages, cache_scores, PAGE, PRIOR)
    earlier = count_earlier(grid, first, left, pages, cache_scores, PAGE, PRIOR)
    own = count_siblings(grid, free, j)
    tl.store(siblings + token * CANDIDATES + j, own)
    tl.store(passing + token, tl.sum((free & (earlier + own < tl.load(fork_budgets + token))).to(tl.int32)))


@triton.jit
def _lower(a, b):
    return tl.minimum(a, b)


@triton.jit
def _fit(
    passing, fork_budgets, streams, firsts, new, lengths, counts, offsets, row_counts, row_lengths,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    wait_for_previous()
    request, i = tl.program_id(0), tl.arange(0, AT_ONCE)
    first, tokens, before = tl.load(firsts + request), tl.load(new + request), tl.load(streams + request)
    passed, rows = 0, 0
    lowest = before - (tl.load(lengths + request) - tokens)
    for start in range(0, tokens, AT_ONCE):
        token, inside = first + start + i, start + i < tokens
        gain = tl.load(passing + token, mask=inside, other=0)
        fork_budget = tl.load(fork_budgets + token, mask=inside, other=_UNLIMITED)
        earlier_budget = tl.load(fork_budgets + token - 1, mask=inside & (start + i > 0), other=_UNLIMITED)
        total = passed + tl.cumsum(gain, 0)
        limit = tl.minimum(lowest, tl.associative_scan(fork_budget - total, 0, _lower))
        earlier_limit = tl.minimum(lowest, tl.associative_scan(earlier_budget - (total - gain), 0, _lower))
        count = tl.where(inside, gain + limit - earlier_limit + 1, 0)
        tl.store(counts + token, count, mask=inside)
        tl.store(offsets + token, rows + tl.cumsum(count, 0) - count, mask=inside)
        passed, rows, lowest = passed + tl.sum(gain), rows + tl.sum(count), tl.min(limit)
    tl.store(row_counts + request, rows)
    tl.store(row_lengths + request, before + rows)


@triton.jit(do_not_specialize=["table_stride"])
def _gather(
    x, fork_embedding, candidate_scores, siblings, offsets, tokens, firsts, starts, counts, next_starts, next_counts,
    requests, positions, frequencies, row_starts, row_counts, lengths, table, live,
    out, slots, scores, cosines, sines, tally, table_stride, width, half,
    PAGE: tl.constexpr, BATCH: tl.constexpr, CANDIDATES: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    wait_for_previous()
    token, j, d = tl.program_id(0), tl.arange(0, CANDIDATES), tl.arange(0, WIDTH)
    if token >= tl.load(tokens):
        return
    request, others = tl.load(requests + token), tl.arange(0, BATCH)
    row_start = tl.sum(tl.load(row_counts + others, mask=others < request, other=0))
    offset, new = tl.load(offsets + token), tl.load(row_counts + request)
    tl.store(next_starts + token, row_start + offset)
    if token == tl.load(firsts + request):
        tl.store(row_starts + request, row_start)
    if token == tl.load(tokens) - 1:
        tl.store(live, row_start + new)
    count, survivors = tl.load(counts + token), tl.load(next_counts + token)
    present, forced = j < 2 * count, j == 2 * count - 1
    free = j < 2 * count - 1
    keep = (free & (tl.load(siblings + token * CANDIDATES + j) < survivors - 1)) | forced
    k = tl.cumsum(keep.to(tl.int32), 0) - 1  # each survivor's index in its bubble
    row, inside = row_start + offset + k, d < width
    mask = keep[:, None] & inside[None, :]
    parent = tl.load(starts + token) + j // 2
    vector = tl.load(x + parent[:, None] * width + d[None, :], mask=mask, other=0.0)
    fork = tl.load(fork_embedding + d, mask=inside, other=0.0).to(vector.dtype)
    vector = tl.where((j % 2 == 0)[:, None], vector + fork[None, :], vector)
    tl.store(out + row[:, None] * width + d[None, :], vector, mask=mask)
    tl.store(scores + row, tl.load(candidate_scores + token * CANDIDATES + j), mask=keep)
    stream = tl.load(lengths + request) - new + offset + k
    page = tl.load(table + request * table_stride + stream // PAGE, mask=keep, other=0)
    tl.store(slots + row, page * PAGE + stream % PAGE, mask=keep)
    position = tl.load(positions + token) + (k + 1).to(tl.float32) / survivors
    write_angles(position, frequencies, cosines, sines, row, keep, half, HALF)
    tl.atomic_add(tally, tl.sum((keep & (j % 2 == 0)).to(tl.int32)))
    tl.atomic_add(tally + 1, tl.sum((present & (j % 2 == 1) & (keep == 0)).to(tl.int32)))
