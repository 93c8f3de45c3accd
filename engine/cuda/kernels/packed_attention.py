"""Attention of many new streams, end to end, to the pages before and to themselves (SPEC.md, "Attenuated block").

Keys and values of the step's own streams are read where its projection left them, in order; only those of earlier
steps are looked up page by page. So a prompt without a cached prefix is plain causal flash attention. Where the cache
has 8 bits, the step's own are rounded alike, so that nothing depends on how a prompt is cut into steps.

Letters: M rows that there may be, N heads, H head width.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.attention import LOG2_E, slots_of
from thoughtbubbles.engine.cuda.kernels.linear import Recent
from thoughtbubbles.engine.cuda.kernels.overlap import overlapped, wait_for_previous
from thoughtbubbles.engine.cuda.kernels.rows import Span
from thoughtbubbles.engine.cuda.kernels.tiles import precision


@dataclass(frozen=True)
class Blocks:
    """The queries of a program, the keys of an iteration, and the program's settings."""

    queries: int
    keys: int
    warps: int
    stages: int


_FLOAT32 = Blocks(64, 64, 4, 2)
_HALF = Blocks(64, 64, 4, 3)
_HALF_FEW = Blocks(64, 64, 4, 2)


def blocks_of(dtype: torch.dtype, most: int) -> Blocks:
    """Return the blocks for slots of at most `most` new streams."""
    if dtype == torch.float32:
        return _FLOAT32
    return _HALF if most > _HALF_FEW.queries else _HALF_FEW


def packed_attention(
    *, queries: Tensor, recent: Recent, keys: Tensor, values: Tensor, span: Span, out: Tensor, most: int,
    cumulative: Tensor | None = None,
) -> None:  # fmt: skip
    """Attend from the new streams of each batch slot to all its streams, causally in stream order: out (M,N·H).

    Queries (M,N,H) lie end to end, at most `most` per slot, and so do their keys and values in `recent`. Keys and
    values (N,slots,H) are a layer of the cache, of which those before the new ones are read. `cumulative` is that of
    `SegmentPages`.
    """
    rows, heads, width = queries.shape
    blocks = blocks_of(queries.dtype, most)
    tile = min(blocks.queries, max(16, triton.next_power_of_2(most)))
    tiles = rows // tile + span.batch_size  # an upper bound
    _packed_attention[(heads, tiles)](  # in this order the long tiles of all heads come first, and no tiles last
        queries=queries, recent_keys=recent.keys, recent_values=recent.values, keys=keys, values=values,
        cumulative=cumulative, table=span.table, lanes=span.lane, starts=span.start, counts=span.count,
        lengths=span.length, out=out, scale=width**-0.5 * LOG2_E, table_stride=span.table.stride(0),
        head_stride=keys.stride(0), batch_size=span.batch_size, BATCH=triton.next_power_of_2(span.batch_size),
        PAGE=span.page_size, HEADS=heads, WIDTH=width, CHANNELS=max(16, triton.next_power_of_2(width)), QUERIES=tile,
        KEYS=blocks.keys, PRECISION=precision(queries), num_warps=blocks.warps, num_stages=blocks.stages,
        **overlapped(queries),
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride", "batch_size"])
def _packed_attention(
    queries, recent_keys, recent_values, keys, values, cumulative, table, lanes, starts, counts, lengths, out,
    scale, table_stride, head_stride, batch_size, BATCH: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    wait_for_previous()
    head = tl.program_id(0)
    b, tile = _tile_of(tl.program_id(1), counts, batch_size, BATCH, QUERIES)
    new, start = tl.load(counts + b), tl.load(starts + b)
    if tile * QUERIES >= new:
        return
    before = (tl.cdiv(new, QUERIES) - 1 - tile) * QUERIES  # the last tiles first: they have the most keys
    cached = tl.load(lengths + b) - new
    i, channel, j = tl.arange(0, QUERIES), tl.arange(0, CHANNELS), tl.arange(0, KEYS)
    present, own = before + i < new, channel < WIDTH
    at = ((start + before + i)[:, None] * HEADS + head) * WIDTH + channel[None, :]
    inside = present[:, None] & own[None, :]
    q = tl.load(queries + at, mask=inside, other=0.0)
    highest = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, CHANNELS], tl.float32)

    # the keys of earlier steps, in pages: all queries see all of them
    pages = table + tl.load(lanes + b) * table_stride
    keys += head * head_stride.to(tl.int64)
    values += head * head_stride.to(tl.int64)
    slot = slots_of(pages, j, cached, PAGE)
    for first in range(0, cached, KEYS):
        seen = first + j < cached
        from_ = slot[:, None].to(tl.int64) * WIDTH + channel[None, :]
        k = tl.load(keys + from_, mask=seen[:, None] & own[None, :], other=0.0).to(q.dtype)
        c = None
        if cumulative is None:
            v = tl.load(values + from_, mask=seen[:, None] & own[None, :], other=0.0)
        else:
            c = tl.load(cumulative + slot, mask=seen, other=0.0)
            within = _transposed((slot // PAGE)[None, :], channel[:, None], (slot % PAGE)[None, :], WIDTH, PAGE)
            v = tl.trans(tl.load(values + within, mask=seen[None, :] & own[:, None], other=0.0).to(q.dtype))
        slot = slots_of(pages, first + KEYS + j, cached, PAGE)  # one iteration ahead: keys do not wait for it
        highest, total, mixed = _attend(q, k, v, c, seen[None, :], highest, total, mixed, scale, PRECISION)

    # the step's own keys: those that all queries of the tile see, and then those that some see
    first_at = (start * HEADS + head) * WIDTH + j[:, None] * (HEADS * WIDTH) + channel[None, :]
    recent_keys += first_at
    recent_values += first_at
    whole = before // KEYS * KEYS
    for first in range(0, whole, KEYS):
        if WIDTH == CHANNELS:
            k = tl.load(recent_keys + first * (HEADS * WIDTH))
            v = tl.load(recent_values + first * (HEADS * WIDTH))
        else:
            k = tl.load(recent_keys + first * (HEADS * WIDTH), mask=own[None, :], other=0.0)
            v = tl.load(recent_values + first * (HEADS * WIDTH), mask=own[None, :], other=0.0)
        highest, total, mixed = _attend(q, k, v, None, None, highest, total, mixed, scale, PRECISION)
    for first in range(whole, tl.minimum(before + QUERIES, new), KEYS):
        key = first + j
        mask = (key < new)[:, None] & own[None, :]
        k = tl.load(recent_keys + first * (HEADS * WIDTH), mask=mask, other=0.0)
        v = tl.load(recent_values + first * (HEADS * WIDTH), mask=mask, other=0.0)
        seen = key[None, :] <= (before + i)[:, None]
        highest, total, mixed = _attend(q, k, v, None, seen, highest, total, mixed, scale, PRECISION)
    tl.store(out + at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _transposed(page, channel, place, WIDTH: tl.constexpr, PAGE: tl.constexpr):
    """Return the offsets of 8-bit values in a head: of pages (1,K), channels (C,1) and places in the page (1,K)."""
    offset = page.to(tl.int64) * (PAGE * WIDTH) + channel * PAGE + place
    return tl.max_contiguous(tl.multiple_of(offset, (1, PAGE)), (1, PAGE))


@triton.jit
def _attend(q, k, v, c, seen, highest, total, mixed, scale, PRECISION: tl.constexpr):
    """Return the running maximum, sum and mixture of each query with more keys, of which it sees those in `seen`.

    `c` are the keys' cumulative scores if these are not in keys and values.
    """
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if c is not None:
        logits += c[None, :]
    if seen is not None:
        logits = tl.where(seen, logits, float("-inf"))
    peak = tl.maximum(highest, tl.max(logits, axis=1) * scale)
    p = tl.exp2(logits * scale - peak[:, None])
    decay = tl.exp2(highest - peak)
    total = total * decay + tl.sum(p, axis=1)
    if c is not None:
        p *= tl.exp(c)[None, :]
    mixed = tl.dot(p.to(v.dtype), v, mixed * decay[:, None], input_precision=PRECISION)
    return peak, total, mixed


@triton.jit
def _tile_of(index, counts, batch_size, BATCH: tl.constexpr, QUERIES: tl.constexpr):
    """Return the batch slot of a tile of queries, and the tile's number in it, which is too large beyond the last tile.

    The tiles of a slot, as many as its new streams fill, follow those of the slot before.
    """
    b = tl.arange(0, BATCH)
    tiles = tl.cdiv(tl.load(counts + b, mask=b < batch_size, other=0), QUERIES)
    before = (tl.cumsum(tiles, 0) <= index) & (b < batch_size - 1)
    return tl.sum(before.to(tl.int32)), index - tl.sum(tl.where(before, tiles, 0))
