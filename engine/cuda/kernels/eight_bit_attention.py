"""Attention of a few new streams over pages with keys and values in 8 bits (SPEC.md, "Attenuated block").

`engine.cuda.kernels.attention` does the same in 16 and 32 bits, bound by the bytes it reads. At half the bytes
instructions matter, so there are fewer: keys and channels are the rows of both products, of which queries may be as few
as 8, and values are stored channel by channel (`engine.cache.pages`), so that products read them as they are. Integer
instructions widen them to float16. They are as fast as the device's own conversion, and make a number of the bits of
NaN too, so that slots without a stream need no mask.

Letters: B batch slots, M rows that there may be, N heads, H head width.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.attention import LOG2_E, Parts, join_parts, share_of
from thoughtbubbles.engine.cuda.kernels.rows import Span
from thoughtbubbles.engine.cuda.kernels.tiles import precision


@dataclass(frozen=True)
class Blocks:
    """The keys of an iteration, and a program's settings."""

    keys: int
    warps: int
    stages: int


BLOCKS = Blocks(64, 2, 3)
"""The fastest of eight on an H200, with 64 slots of 2,000 tokens and heads of 64 channels."""


def eight_bit_attention(
    *, queries: Tensor, keys: Tensor, values: Tensor, cumulative: Tensor, span: Span, out: Tensor, parts: Parts,
    most: int,
) -> None:  # fmt: skip
    """As `paged_attention`; keys and values (N,slots,H) and `cumulative` (slots,) are those of 8-bit `SegmentPages`.

    In slots that no stream has, keys and values may be anything. Queries beyond 1,400 overflow in float16.
    """
    _, heads, width = queries.shape
    _eight_bit_attention[(span.batch_size, heads, parts.splits)](
        queries=queries, keys=keys, values=values, cumulative=cumulative, table=span.table, lanes=span.lane,
        starts=span.start, counts=span.count, lengths=span.length, out=out, outputs=parts.outputs,
        weights=parts.weights, arrivals=parts.arrivals, scale=width**-0.5 * LOG2_E, table_stride=span.table.stride(0),
        head_stride=keys.stride(0), PAGE=span.page_size, HEADS=heads, WIDTH=width,
        CHANNELS=max(16, triton.next_power_of_2(width)), QUERIES=max(8, triton.next_power_of_2(most)),
        KEYS=BLOCKS.keys, SPLITS=parts.splits, UNIT=1.0 if queries.dtype == torch.float32 else 256.0,
        PRECISION=precision(queries), num_warps=BLOCKS.warps, num_stages=BLOCKS.stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride"])
def _eight_bit_attention(
    queries, keys, values, cumulative, table, lanes, starts, counts, lengths, out, outputs, weights, arrivals,
    scale, table_stride, head_stride,
    PAGE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
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
    q = q.to(tl.float32) * (scale * UNIT)
    if queries.dtype.element_ty != tl.float32:
        q = q.to(tl.float16)
    last = length - count + i  # the last key that each query attends to: its own
    pages, last_page = table + lane * table_stride, (length - 1) // PAGE
    keys += head * head_stride.to(tl.int64)
    values += head * head_stride.to(tl.int64)

    begin, end = split * share, tl.minimum(length, (split + 1) * share)
    page = tl.load(pages + tl.minimum((begin + j) // PAGE, last_page))
    highest = tl.full([QUERIES], -1e30, tl.float32)  # finite: a query may attend to no key of this part
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([CHANNELS, QUERIES], tl.float32)
    for first in range(begin, end, KEYS):
        key, slot = first + j, page * PAGE + j % PAGE
        k = _widen(tl.load(keys + slot[:, None].to(tl.int64) * WIDTH + own[None, :]), q.dtype)
        v = _widen(tl.load(values + transposed(page[None, :], own[:, None], (j % PAGE)[None, :], WIDTH, PAGE)), q.dtype)
        c = tl.load(cumulative + slot, mask=key < end, other=0.0)
        page = tl.load(pages + tl.minimum((key + KEYS) // PAGE, last_page))  # one iteration ahead
        logits = tl.dot(k, q, input_precision=PRECISION) + (c * scale)[:, None]
        if first + KEYS > length - count:
            logits = tl.where(key[:, None] <= last[None, :], logits, float("-inf"))
        peak = tl.maximum(highest, tl.max(logits, axis=0))
        p = tl.exp2(logits - peak[None, :])
        decay = tl.exp2(highest - peak)
        total = total * decay + tl.sum(p, axis=0)
        p *= tl.exp(c)[:, None]
        mixed = tl.dot(v, p.to(v.dtype), mixed * decay[None, :], input_precision=PRECISION)
        highest = peak
    y = tl.trans(mixed * UNIT / tl.where(total > 0, total, 1.0)[None, :])
    y, mine = join_parts(y, highest, total, outputs, weights, arrivals, row, head, split, used, i < count,
                         tl.trans(inside), channel, HEADS, WIDTH, QUERIES, CHANNELS, SPLITS)  # fmt: skip
    tl.store(out + (row[:, None] * HEADS + head) * WIDTH + channel[None, :], y.to(out.dtype.element_ty),
             mask=tl.trans(inside) & mine)  # fmt: skip


@triton.jit
def transposed(page, channel, place, WIDTH: tl.constexpr, PAGE: tl.constexpr):
    """Return the offsets of 8-bit values in a head: of pages (1,K), channels (C,1) and places in the page (1,K)."""
    offset = page.to(tl.int64) * (PAGE * WIDTH) + channel * PAGE + place
    return tl.max_contiguous(tl.multiple_of(offset, (1, PAGE)), (1, PAGE))


@triton.jit
def _widen(x, dtype: tl.constexpr):
    """Return 8-bit floats in float32, or over 256 in float16. None is NaN: the bits of NaN are 480.

    A float16 has one bit of exponent and seven of mantissa more. So the sign moves by eight bits, the others by seven,
    and the number is 2^-8 of what it was, which the smallest has too.
    """
    if dtype == tl.float32:
        wide = x.to(tl.float32)
        wide = tl.where((x.to(tl.int8, bitcast=True) & 127) == 127, 480.0, wide)
    else:
        wide = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, sign;
            prmt.b32 low, $2, 0, 0x4140;
            prmt.b32 high, $2, 0, 0x4342;
            and.b32 sign, low, 0x00800080;
            shl.b32 low, low, 7;
            mad.lo.u32 $0, sign, 128, low;
            and.b32 sign, high, 0x00800080;
            shl.b32 high, high, 7;
            mad.lo.u32 $1, sign, 128, high;
            }""",
            "=r,=r,r", [x], dtype=tl.float16, is_pure=True, pack=4,
        )  # fmt: skip
    return wide
