"""A fork of many tokens at once, one program a token; `engine.kernels.forking` is the same for one token a place.

SPEC.md, "Fork", "Selection rules" and "Positions". Letters: R requests, T new tokens of all of them, laid end to end,
M streams that there may be, C candidates of one token, D model width, H head width.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.forking import candidates_of, count_prior, count_siblings, write_angles
from engine.kernels.rows import Rows
from model import ForkingBlock

_PRIOR_AT_ONCE = 512


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

    @classmethod
    def empty(cls, tokens: int, candidates: int, device: torch.device) -> Self:
        """Room for them."""
        # each by itself: where a tensor begins is part of what a kernel is compiled for
        grid, siblings = (torch.empty((tokens, candidates), dtype=torch.int32, device=device) for _ in range(2))
        passing = torch.empty(tokens, dtype=torch.int32, device=device)
        return cls(torch.empty((tokens, candidates), device=device), grid, siblings, passing)


def weigh(block: ForkingBlock, x: Tensor, bubbles: Bubbles, rows: Rows, cached: Tensor, into: Candidates) -> None:
    """Score the candidates of streams x (M,D); their grid scores also go to the cache's pages, `cached` (slots,2)."""
    norm, (tokens, candidates) = block.forking_ln, into.grid.shape
    _weigh[(tokens,)](
        x, norm.weight, norm.bias, block.forking_score.weight, norm.eps, bubbles.start, bubbles.count, rows.slot,
        rows.score, cached, into.score, into.grid, x.shape[1],
        CANDIDATES=candidates, WIDTH=triton.next_power_of_2(x.shape[1]), num_warps=8,
    )  # fmt: skip


def rank(bubbles: Bubbles, request: Tensor, rows: Rows, cached: Tensor, room: Tensor, into: Candidates) -> None:
    """Rule (a): how many of each token's candidates have fewer higher ones to their left than there is `room` (T,).

    `request` (T,) int32 is each token's; all candidates of this step stand in the pages already.
    """
    tokens, candidates = into.grid.shape
    _rank[(tokens,)](
        into.grid, bubbles.start, bubbles.count, request, rows.start, rows.count, rows.length, rows.table, cached, room,
        into.siblings, into.passing, rows.table.stride(0),
        PAGE=rows.page_size, CANDIDATES=candidates, PRIOR=_PRIOR_AT_ONCE,
    )  # fmt: skip


def spread(
    block: ForkingBlock, x: Tensor, before: Bubbles, candidates: Candidates, after: Bubbles, request: Tensor,
    position: Tensor, frequencies: Tensor, out: Tensor, token_index: Tensor, into: Rows, tally: Tensor,
) -> None:  # fmt: skip
    """The survivors, as many of each token as `after` counts: the originals, and the highest of the others.

    Their vectors go to `out` (M,D), their token to `token_index` (M,), all else of them to `into`; `tally` (2,) counts
    fork copies that survived and streams that were deleted. `position` (T,) is each token's place in its request.
    """
    tokens, most = candidates.grid.shape
    _spread[(tokens,)](
        x, block.fork_embedding, candidates.score, candidates.siblings, before.start, before.count,
        after.start, after.count, request, position, frequencies, into.start, into.count, into.length, into.table,
        out, token_index, into.slot, into.score, into.cos, into.sin, tally, into.table.stride(0), x.shape[1],
        frequencies.shape[0], PAGE=into.page_size, CANDIDATES=most, WIDTH=triton.next_power_of_2(x.shape[1]),
        HALF=triton.next_power_of_2(frequencies.shape[0]), num_warps=8,
    )  # fmt: skip


@triton.jit
def _weigh(
    x, norm_weight, norm_bias, projection, eps, starts, counts, slots, scores, cached, out_scores, out_grid, width,
    CANDIDATES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token, j = tl.program_id(0), tl.arange(0, CANDIDATES)
    count = tl.load(counts + token)
    row = tl.load(starts + token) + j // 2
    score, grid = candidates_of(x, norm_weight, norm_bias, projection, eps, row, j, count, scores, width, WIDTH)
    tl.store(out_scores + token * CANDIDATES + j, score)
    tl.store(out_grid + token * CANDIDATES + j, grid)
    present = j < 2 * count
    tl.store(cached + tl.load(slots + row, mask=present, other=0) * 2 + j % 2, grid, mask=present)


@triton.jit(do_not_specialize=["table_stride"])
def _rank(
    grids, starts, counts, requests, row_starts, row_counts, lengths, table, cached, rooms, siblings, passing,
    table_stride, PAGE: tl.constexpr, CANDIDATES: tl.constexpr, PRIOR: tl.constexpr,
):  # fmt: skip
    token, j = tl.program_id(0), tl.arange(0, CANDIDATES)
    request = tl.load(requests + token)
    free = j < 2 * tl.load(counts + token) - 1
    grid = tl.load(grids + token * CANDIDATES + j)
    held = tl.load(lengths + request) - tl.load(row_counts + request)
    left = held + tl.load(starts + token) - tl.load(row_starts + request)
    earlier = count_prior(grid, left, table + request * table_stride, cached, PAGE, CANDIDATES, PRIOR)
    own = count_siblings(grid, free, j)
    tl.store(siblings + token * CANDIDATES + j, own)
    tl.store(passing + token, tl.sum((free & (earlier + own < tl.load(rooms + token))).to(tl.int32)))


@triton.jit(do_not_specialize=["table_stride"])
def _spread(
    x, fork_embedding, candidate_scores, siblings, starts, counts, next_starts, next_counts, requests, positions,
    frequencies, row_starts, row_counts, lengths, table, out, token_index, slots, scores, cosines, sines, tally,
    table_stride, width, half,
    PAGE: tl.constexpr, CANDIDATES: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token, j, d = tl.program_id(0), tl.arange(0, CANDIDATES), tl.arange(0, WIDTH)
    count, survivors = tl.load(counts + token), tl.load(next_counts + token)
    present, forced = j < 2 * count, j == 2 * count - 1
    free = j < 2 * count - 1
    keep = (free & (tl.load(siblings + token * CANDIDATES + j) < survivors - 1)) | forced
    k = tl.cumsum(keep.to(tl.int32), 0) - 1  # each survivor's place in its bubble
    row, there = tl.load(next_starts + token) + k, d < width
    both = keep[:, None] & there[None, :]
    parent = tl.load(starts + token) + j // 2
    vector = tl.load(x + parent[:, None] * width + d[None, :], mask=both, other=0.0)
    mark = tl.load(fork_embedding + d, mask=there, other=0.0).to(vector.dtype)
    vector = tl.where((j % 2 == 0)[:, None], vector + mark[None, :], vector)
    tl.store(out + row[:, None] * width + d[None, :], vector, mask=both)
    tl.store(token_index + row, token.to(tl.int64), mask=keep)
    tl.store(scores + row, tl.load(candidate_scores + token * CANDIDATES + j), mask=keep)
    request = tl.load(requests + token)
    held = tl.load(lengths + request) - tl.load(row_counts + request)
    stream = held + row - tl.load(row_starts + request)
    page = tl.load(table + request * table_stride + stream // PAGE, mask=keep, other=0)
    tl.store(slots + row, page * PAGE + stream % PAGE, mask=keep)
    position = tl.load(positions + token) + (k + 1).to(tl.float32) / survivors
    write_angles(position, frequencies, cosines, sines, row, keep, half, HALF)
    tl.atomic_add(tally, tl.sum((keep & (j % 2 == 0)).to(tl.int64)))
    tl.atomic_add(tally + 1, tl.sum((present & (j % 2 == 1) & (keep == 0)).to(tl.int64)))
