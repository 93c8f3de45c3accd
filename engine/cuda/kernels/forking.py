"""The beginning of a decode step, its forks and its readout: one new token in each batch slot.

SPEC.md, "Fork", "Selection rules", "Positions" and "Output averaging".
Letters: B batch slots, M rows that there may be, C candidates of one token, D model width, H head width.
"""

import triton
import triton.language as tl
from torch import Tensor, nn

from thoughtbubbles.engine.cache.pages import NO_CANDIDATE
from thoughtbubbles.engine.cuda.kernels.linear import channels_of, norm_parameters
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
UNKNOWN = -1
"""The count of a slot's streams in a segment before the fork into it."""
_UNKNOWN = tl.constexpr(UNKNOWN)


def embed(
    *, embedding: Tensor, token: Tensor, lanes: Lanes, time: Tensor, rows: Rows, counts: Tensor, frequencies: Tensor,
    x: Tensor, norm: nn.LayerNorm | None, normed: Tensor,
) -> None:  # fmt: skip
    """Make one stream of each slot's newest token, `token` (L,): its embedding in x (M,D), its row in `rows`.

    With a norm LN(x) goes to `normed` (M,D). The token's index in its sequence goes to `time` (B,), and `UNKNOWN` to
    `counts` (G,·) int32 of the segments after the first. `frequencies` (H/2,) are the rotary ones. The lane advances by
    a token.
    """
    gain, shift, eps = norm_parameters(norm)
    _embed[(rows.batch_size,)](
        embedding=embedding, token=token, tokens=lanes.tokens, streams=lanes.streams[0], table=rows.table,
        lanes=rows.lane, frequencies=frequencies, time=time, x=x, starts=rows.start, counts=counts,
        counts_stride=counts.stride(0), lengths=rows.length, live=rows.live, slots=rows.slot, scores=rows.score,
        cosines=rows.cos, sines=rows.sin, table_stride=rows.table.stride(0), width=x.shape[1],
        half=frequencies.shape[0], norm_weight=gain, norm_bias=shift, eps=eps, normed=normed, PAGE=rows.page_size,
        SEGMENTS=len(counts), BATCH=triton.next_power_of_2(rows.batch_size), WIDTH=triton.next_power_of_2(x.shape[1]),
        HALF=triton.next_power_of_2(frequencies.shape[0]),
    )  # fmt: skip


def fork(
    *, block: ForkingBlock, x: Tensor, rows: Rows, scores: Tensor, lanes: Lanes, time: Tensor, into: Rows, segment: int,
    block_size: int, frequencies: Tensor, out: Tensor, norm: nn.LayerNorm | None, normed: Tensor, tally: Tensor,
    early: bool,
) -> None:  # fmt: skip
    """Fork streams x (M,D) by the causal rule, on their way into `segment`: the survivors go to `out` (M,D).

    Their rows go to `into`, whose counts are `UNKNOWN` before, LN(out) with a norm to `normed` (M,D), and the
    candidates' grid scores to the cache's pages, `scores` (slots,2). Adds to `tally` (2,) the fork copies that survived
    and the streams that were deleted. `early`: the kernel before wrote nothing but x, so that this one may begin.
    """
    scoring, (gain, shift, eps) = block.forking_ln, norm_parameters(norm)
    _fork[(rows.batch_size,)](
        x=x, scoring_weight=scoring.weight, scoring_bias=scoring.bias, scoring_eps=scoring.eps,
        projection=block.forking_score.weight, fork_embedding=block.fork_embedding, starts=rows.start,
        counts=rows.count, lengths=rows.length, slots=rows.slot, scores=rows.score, table=rows.table, lanes=rows.lane,
        cache_scores=scores, time=time, kappas=lanes.kappa, block_size=block_size, next_streams=lanes.streams[segment],
        next_table=into.table, frequencies=frequencies, out=out, next_starts=into.start, next_counts=into.count,
        next_lengths=into.length, live=into.live, next_slots=into.slot, next_scores=into.score, cosines=into.cos,
        sines=into.sin, tally=tally, table_stride=rows.table.stride(0), width=x.shape[1], half=frequencies.shape[0],
        norm_weight=gain, norm_bias=shift, eps=eps, normed=normed, PAGE=rows.page_size, PARENTS=into.most // 2,
        PRIOR=_PRIOR_AT_ONCE,
        BATCH=triton.next_power_of_2(rows.batch_size), WIDTH=triton.next_power_of_2(x.shape[1]),
        HALF=triton.next_power_of_2(frequencies.shape[0]), num_warps=8, **overlapped(x, early),
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
    time, x, starts, counts, counts_stride, lengths, live, slots, scores, cosines, sines, table_stride, width, half,
    norm_weight, norm_bias, eps, normed,
    PAGE: tl.constexpr, SEGMENTS: tl.constexpr, BATCH: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    start_next()
    b, others = tl.program_id(0), tl.arange(0, BATCH)
    lane = tl.load(lanes + b)
    earlier = tl.load(lanes + others, mask=others < b, other=-1)
    row = tl.sum((earlier >= 0).to(tl.int32))
    present = (lane >= 0).to(tl.int32)
    tl.store(starts + b, row)
    tl.store(counts + b, present)
    for segment in tl.static_range(1, SEGMENTS):
        tl.store(counts + segment * counts_stride + b, _UNKNOWN)
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
    if norm_weight is not None:
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
    return _normed(x, inside, channels_of(weight, d, inside), channels_of(bias, d, inside), eps, width)


@triton.jit
def _normed(x, inside, gain, shift, eps, width):
    """The same with the parameters read."""
    mean = tl.sum(x, axis=1)[:, None] / width
    centred = tl.where(inside[None, :], x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / width
    return centred / tl.sqrt(variance + eps) * gain.to(tl.float32)[None, :] + shift.to(tl.float32)[None, :]


@triton.jit
def read_scoring(norm_weight, norm_bias, projection, d, width):
    """Read what scores a fork's candidates: LN_f, and W_f for fork copies and for kept streams."""
    inside = d < width
    gain, shift = channels_of(norm_weight, d, inside), channels_of(norm_bias, d, inside)
    return gain, shift, channels_of(projection, d, inside), channels_of(projection + width, d, inside)


@triton.jit
def candidates_of(x, scoring, eps, score, count, width, PARENTS: tl.constexpr, WIDTH: tl.constexpr):
    """Return the scores of one token's candidates, and their grid scores, from its streams x (PARENTS,WIDTH).

    log p = max(logsigmoid(W_f · LN_f(x)), -20); of stream i, whose cumulative score is `score`, candidate 2i is a fork
    copy, 2i + 1 the kept stream. `count` streams are there, and the last candidate is not scored.
    """
    gain, shift, copy, keep = scoring
    normed = _normed(x.to(tl.float32), tl.arange(0, WIDTH) < width, gain, shift, eps, width)
    normed = normed.to(x.dtype).to(tl.float32)
    copied = score + _log_p(tl.sum(normed * copy.to(tl.float32)[None, :], axis=1))
    kept = score + _log_p(tl.sum(normed * keep.to(tl.float32)[None, :], axis=1))
    both = tl.reshape(tl.join(copied, kept), [2 * PARENTS])
    return both, tl.where(tl.arange(0, 2 * PARENTS) < 2 * count - 1, _on_grid(both), _NO_CANDIDATE)


@triton.jit
def _log_p(s):
    return tl.maximum(tl.minimum(s, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(s))), _LOWEST)


@triton.jit
def read_earlier(first, left, pages, cache_scores, PAGE: tl.constexpr, PRIOR: tl.constexpr):
    """Read the grid scores of PRIOR of the `left` streams before a token: those of fork copies, those of kept ones."""
    stream = first + tl.arange(0, PRIOR)
    slot = tl.load(pages + stream // PAGE, mask=stream < left, other=0) * PAGE + stream % PAGE
    copied = tl.load(cache_scores + slot * 2, mask=stream < left, other=_NO_CANDIDATE)
    return copied, tl.load(cache_scores + slot * 2 + 1, mask=stream < left, other=_NO_CANDIDATE)


@triton.jit
def count_earlier(grid, first, left, pages, cache_scores, PAGE: tl.constexpr, PRIOR: tl.constexpr):
    """Count for each candidate those of the `left` streams before it that are not lower; ties go to the left.

    `first` is what `read_earlier` read of the first of them.
    """
    earlier = _not_lower(first, grid)
    for start in range(PRIOR, left, PRIOR):
        earlier += _not_lower(read_earlier(start, left, pages, cache_scores, PAGE, PRIOR), grid)
    return earlier


@triton.jit
def _not_lower(earlier, grid):
    copied, kept = earlier
    return tl.sum((copied[:, None] >= grid[None, :]).to(tl.int32) + (kept[:, None] >= grid[None, :]), axis=0)


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
def _fork(
    x, scoring_weight, scoring_bias, scoring_eps, projection, fork_embedding, starts, counts, lengths, slots, scores,
    table, lanes, cache_scores, time, kappas, block_size, next_streams, next_table, frequencies,
    out, next_starts, next_counts, next_lengths, live, next_slots, next_scores, cosines, sines, tally, table_stride,
    width, half, norm_weight, norm_bias, eps, normed,
    PAGE: tl.constexpr, PARENTS: tl.constexpr, PRIOR: tl.constexpr, BATCH: tl.constexpr, WIDTH: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    b, d, i, j = tl.program_id(0), tl.arange(0, WIDTH), tl.arange(0, PARENTS), tl.arange(0, 2 * PARENTS)
    inside = d < width
    # all but x is there before the kernel before has ended
    lane, count, start = tl.load(lanes + b), tl.load(counts + b), tl.load(starts + b)
    t, length = tl.load(time + b), tl.load(lengths + b)
    scoring = read_scoring(scoring_weight, scoring_bias, projection, d, width)
    embedding, gain, shift = channels_of(fork_embedding, d, inside), norm_weight, norm_bias
    if norm_weight is not None:
        gain, shift = channels_of(norm_weight, d, inside), channels_of(norm_bias, d, inside)
    present = lane >= 0
    lane, row = tl.maximum(lane, 0), start + i
    left, pages = tl.where(present, length - count, 0), table + lane * table_stride
    kappa, before = tl.load(kappas + lane), tl.load(next_streams + lane)
    score = tl.load(scores + row, mask=i < count, other=0.0)
    slot = tl.load(slots + row, mask=i < count, other=0)
    first = read_earlier(0, left, pages, cache_scores, PAGE, PRIOR)
    wait_for_previous()

    at = row[:, None] * width + d[None, :]
    own = tl.load(x + at, mask=(i < count)[:, None] & inside[None, :], other=0.0)
    score, grid = candidates_of(own, scoring, scoring_eps, score, count, width, PARENTS, WIDTH)
    earlier = count_earlier(grid, first, left, pages, cache_scores, PAGE, PRIOR)
    keep, gained = _survivors(grid, earlier, j, count, before, t, kappa, block_size)
    new = tl.where(present, gained + 1, 0)
    tl.store(next_counts + b, new)  # at once, since the slots after wait for it
    k = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(cache_scores + tl.reshape(tl.join(2 * slot, 2 * slot + 1), [2 * PARENTS]), grid, mask=j < 2 * count)
    tl.atomic_add(tally, tl.sum((keep & (j % 2 == 0)).to(tl.int64)))
    tl.atomic_add(tally + 1, tl.sum(((j < 2 * count) & (j % 2 == 1) & (keep == 0)).to(tl.int64)))
    tl.store(next_streams + lane, before + new, mask=present)
    tl.store(next_lengths + b, before + new, mask=present)

    begin = _rows_before(next_counts, b, BATCH)
    tl.store(next_starts + b, begin)
    if b == tl.num_programs(0) - 1:
        tl.store(live, begin + new)
    row, stream = begin + k, before + k
    page = tl.load(next_table + lane * table_stride + stream // PAGE, mask=keep, other=0)
    tl.store(next_slots + row, page * PAGE + stream % PAGE, mask=keep)
    tl.store(next_scores + row, score, mask=keep)
    write_angles(t + (k + 1).to(tl.float32) / tl.maximum(new, 1), frequencies, cosines, sines, row, keep, half, HALF)
    copy_row, row = tl.split(tl.reshape(tl.where(keep, row, -1), [PARENTS, 2]))
    _write_streams(own + embedding.to(own.dtype)[None, :], copy_row, out, normed, gain, shift, eps, d, width)
    _write_streams(own, row, out, normed, gain, shift, eps, d, width)


@triton.jit
def _survivors(grid, earlier, j, count, streams, t, kappa, block_size):
    """Return which candidates `j` of token t survive, and how many but the forced one.

    `streams` has the request before the token, of which `earlier` candidates are not lower than each.
    """
    free, forced = j < 2 * count - 1, j == 2 * count - 1
    siblings, alive = count_siblings(grid, free, j), streams - t
    fork_budget = ((t + 1).to(tl.int64) * kappa + block_size - 1) // block_size - (t + 1)
    # rule (a): a running top-k; rule (b): within the budget at every length
    passing = tl.sum((free & (earlier + siblings < fork_budget)).to(tl.int32))
    gained = tl.minimum(alive + passing, fork_budget.to(tl.int32)) - alive
    return (free & (siblings < gained)) | forced, gained


@triton.jit
def _write_streams(x, row, out, normed, gain, shift, eps, d, width):
    """Write streams x (PARENTS,WIDTH) to these rows, those of row -1 nowhere; LN(x) too, if a gain is given."""
    inside = d < width
    at, mask = row[:, None] * width + d[None, :], (row >= 0)[:, None] & inside[None, :]
    tl.store(out + at, x, mask=mask)
    if gain is not None:
        y = _normed(x.to(tl.float32), inside, gain, shift, eps, width)
        tl.store(normed + at, y.to(normed.dtype.element_ty), mask=mask)


@triton.jit
def _rows_before(counts, b, BATCH: tl.constexpr):
    """Wait until the slots before slot b know their counts, and return the sum.

    Programs start in the order of their numbers, as every look-back relies on: those that are waited for run already,
    and wait for none after them.
    """
    others = tl.arange(0, BATCH)
    count = tl.load(counts + others, mask=others < b, other=0, volatile=True)
    while tl.min(count, axis=0) < 0:
        count = tl.load(counts + others, mask=others < b, other=0, volatile=True)
    return tl.sum(count, axis=0)


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
