"""Attention of a few new streams over pages with keys and values in 8 bits (SPEC.md, "Attenuated block").

`engine.cuda.kernels.attention` does the same in 16 and 32 bits, bound by the bytes it reads. At half the bytes
instructions matter, so there are fewer: keys and channels are the rows of both products, of which queries may be as few
as 8, values are stored channel by channel (`engine.cache.pages`), so that products read them as they are, and they are
never NaN, so that slots without a stream need no mask. A page has few bytes of a channel, but those of the next one
follow: values are read in the order in which they lie, so that adjacent threads read adjacent bytes, and threads find
their channels and keys in shared memory.

Letters: B batch slots, M rows that there may be, N heads, H head width; of values R runs of adjacent keys in a page,
of U keys each.
"""

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.attention import LOG2_E, Parts, join_parts, share_of
from thoughtbubbles.engine.cuda.kernels.overlap import overlapped, wait_for_previous
from thoughtbubbles.engine.cuda.kernels.rows import Span
from thoughtbubbles.engine.cuda.kernels.tiles import precision


@dataclass(frozen=True)
class Blocks:
    """The keys of an iteration, and a program's settings."""

    keys: int
    warps: int
    stages: int


BLOCKS = Blocks(64, 2, 3)
"""The fastest of 14 on an H200, with 64 slots of 2,000 tokens and heads of 64 channels."""


def eight_bit_attention(
    *, queries: Tensor, keys: Tensor, values: Tensor, cumulative: Tensor, span: Span, out: Tensor, parts: Parts,
    most: int,
) -> None:  # fmt: skip
    """As `paged_attention`; keys and values (N,slots,H) and `cumulative` (slots,) are those of 8-bit `SegmentPages`.

    In slots that no stream has, keys may be anything, and values any numbers.
    """
    _, heads, width = queries.shape
    _eight_bit_attention[(span.batch_size, heads, parts.splits)](
        queries=queries, keys=keys, values=values, cumulative=cumulative, table=span.table, lanes=span.lane,
        starts=span.start, counts=span.count, lengths=span.length, out=out, outputs=parts.outputs,
        weights=parts.weights, arrivals=parts.arrivals, scale=width**-0.5 * LOG2_E, table_stride=span.table.stride(0),
        head_stride=keys.stride(0), PAGE=span.page_size, HEADS=heads, WIDTH=width,
        CHANNELS=max(16, triton.next_power_of_2(width)), QUERIES=max(8, triton.next_power_of_2(most)),
        KEYS=BLOCKS.keys, RUN=math.gcd(BLOCKS.keys, span.page_size), SPLITS=parts.splits,
        PRECISION=precision(queries), num_warps=BLOCKS.warps, num_stages=BLOCKS.stages, **overlapped(queries),
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def _eight_bit_attention(
    queries, keys, values, cumulative, table, lanes, starts, counts, lengths, out, outputs, weights, arrivals,
    scale, table_stride, head_stride,
    PAGE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, RUN: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    wait_for_previous()
    b, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count, length, start, lane, share, used = share_of(counts, lengths, starts, lanes, b, KEYS, SPLITS)
    # `lane` and `start` are tested only so that all four loads are issued before the branch, not two of them after it.
    if (count <= 0) | (split >= used) | (lane < 0) | (start < 0):
        return
    i, channel, j = tl.arange(0, QUERIES), tl.arange(0, CHANNELS), tl.arange(0, KEYS)
    row, own = start + i, channel
    if WIDTH < CHANNELS:
        own = tl.minimum(channel, WIDTH - 1)
    inside = (i < count)[None, :] & (channel < WIDTH)[:, None]
    q = tl.load(queries + (row[None, :] * HEADS + head) * WIDTH + channel[:, None], mask=inside, other=0.0)
    logit = scale  # what a logit is multiplied by
    if queries.dtype.element_ty != tl.float32:
        q, unit = _narrow(q.to(tl.float32))
        logit = scale / unit
    last = length - count + i  # the last key that each query attends to: its own
    pages, last_page = table + lane * table_stride, (length - 1) // PAGE
    keys += head * head_stride.to(tl.int64)
    values += head * head_stride.to(tl.int64)

    begin, end = split * share, tl.minimum(length, (split + 1) * share)
    page = tl.load(pages + tl.minimum((begin + j) // PAGE, last_page))
    RUNS: tl.constexpr = PAGE // RUN  # of a page
    run = tl.arange(0, KEYS // RUN)
    home = tl.load(pages + tl.minimum((begin // RUN + run) // RUNS, last_page))  # the page of each run
    within = own[None, :, None] * PAGE + tl.arange(0, RUN)[None, None, :]
    highest = tl.full([QUERIES], -1e30, tl.float32)  # finite: a query may attend to no key of this part
    totals = tl.zeros([KEYS, QUERIES], tl.float32)  # summed up once, since threads wait for each other's sums
    mixed = tl.zeros([CHANNELS, QUERIES], tl.float32)
    for first in range(begin, end, KEYS):
        key, place = first + j, (first // RUN + run) % RUNS * RUN
        slot = page * PAGE + key % PAGE
        k = tl.load(keys + slot[:, None].to(tl.int64) * WIDTH + own[None, :]).to(q.dtype)
        v = tl.load(values + (home.to(tl.int64) * (PAGE * WIDTH) + place)[:, None, None] + within)  # (R,H,U)
        v = tl.reshape(tl.permute(v, (1, 0, 2)), [CHANNELS, KEYS]).to(q.dtype)
        c = tl.load(cumulative + slot, mask=key < end, other=0.0)
        page = tl.load(pages + tl.minimum((key + KEYS) // PAGE, last_page))  # one iteration ahead
        home = tl.load(pages + tl.minimum(((first + KEYS) // RUN + run) // RUNS, last_page))
        logits = tl.dot(k, q, input_precision=PRECISION) * logit + (c * scale)[:, None]
        if first + KEYS > length - count:
            logits = tl.where(key[:, None] <= last[None, :], logits, float("-inf"))
        peak = tl.maximum(highest, tl.max(logits, axis=0))
        p = tl.exp2(logits - peak[None, :])
        decay = tl.exp2(highest - peak)
        totals = totals * decay[None, :] + p
        p *= tl.exp(c)[:, None]
        mixed = tl.dot(v, p.to(v.dtype), mixed * decay[None, :], input_precision=PRECISION)
        highest = peak
    total = tl.sum(totals, axis=0)
    y = tl.trans(mixed / tl.where(total > 0, total, 1.0)[None, :])
    y, mine = join_parts(y, highest, total, outputs, weights, arrivals, row, head, split, used, i < count,
                         tl.trans(inside), channel, HEADS, WIDTH, QUERIES, CHANNELS, SPLITS)  # fmt: skip
    tl.store(out + (row[:, None] * HEADS + head) * WIDTH + channel[None, :], y.to(out.dtype.element_ty),
             mask=tl.trans(inside) & mine)  # fmt: skip


@triton.jit
def _narrow(q):
    """Return queries in float16 and what they were multiplied by, a power of two: the largest is then near 2^14."""
    largest = tl.maximum(tl.max(tl.abs(q)), 1e-30)
    unit = tl.exp2(14 - tl.ceil(tl.log2(largest)))
    return (q * unit).to(tl.float16), unit
