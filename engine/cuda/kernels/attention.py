"""Attention over the pages of the fork-state cache (SPEC.md, "Attenuated block").

Letters: B places of the batch, M streams that there may be, N heads, H head width.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.rows import Span
from thoughtbubbles.engine.cuda.kernels.tiles import precision

_KEYS_AT_ONCE = 64
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Parts:
    """What several programs make of one query's keys, until the last of them puts it together."""

    splits: int
    """Programs that share out the keys of a place."""
    outputs: Tensor
    """(M,N,splits,H) float32."""
    weights: Tensor
    """(M,N,splits) float32, the logarithm to base 2 of each part's weight."""
    arrivals: Tensor
    """(B,N) int32, programs that have finished; 0 between two calls."""

    @classmethod
    def empty(cls, places: int, rows: int, heads: int, width: int, splits: int, device: torch.device) -> Self:
        """Room for the parts; none is needed where nothing is shared out."""
        kept = rows if splits > 1 else 0
        return cls(
            splits,
            torch.empty((kept, heads, splits, width), device=device),
            torch.empty((kept, heads, splits), device=device),
            torch.zeros((places, heads), dtype=torch.int32, device=device),
        )


def paged_attention(
    queries: Tensor, keys: Tensor, values: Tensor, span: Span, out: Tensor, parts: Parts, *, most: int
) -> None:
    """Attention of each place's new streams over all it holds, causal in stream order; out (M,N·H).

    Queries (M,N,H) are laid end to end, at most `most` a place; keys and values (N,slots,H) are a layer of the cache,
    which has the new ones already, as the last of their place. Only live slots are read.
    """
    rows, heads, width = queries.shape
    tile = min(64, max(16, triton.next_power_of_2(most)))
    tiled = most > tile
    assert not tiled or parts.splits == 1, "parts are put together for one tile of queries"
    tiles = rows // tile + span.places if tiled else span.places  # as many as there may be
    warps, stages = _warps_and_stages(queries.dtype, tile, parts.splits)
    _paged_attention[(tiles, heads, parts.splits)](
        queries, keys, values, span.table, span.lane, span.start, span.count, span.length, out,
        parts.outputs, parts.weights, parts.arrivals, width**-0.5 * _LOG2_E, span.table.stride(0), keys.stride(0),
        span.places, PLACES=triton.next_power_of_2(span.places) if tiled else 0,
        PAGE=span.page_size, HEADS=heads, WIDTH=width, CHANNELS=max(16, triton.next_power_of_2(width)),
        QUERIES=tile, KEYS=_KEYS_AT_ONCE, SPLITS=parts.splits, PRECISION=precision(queries),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _warps_and_stages(dtype: torch.dtype, tile: int, splits: int) -> tuple[int, int]:
    """Of a program; each stage but one is a buffer for keys and one for values.

    For few queries as measured on an H100 at 1 to 256 places of 100 to 2,000 tokens, heads of 64 channels: two warps
    wait less for each other than four, but lack registers for float32; and where keys are shared out, programs are too
    few to hide each other's waiting, so each asks for keys two iterations ahead.
    """
    if tile > 16 or dtype == torch.float32:
        return 4, 2
    return 2, 2 if splits == 1 else 3


@triton.jit(do_not_specialize=["table_stride", "places"])
def _paged_attention(
    queries, keys, values, table, lanes, starts, counts, lengths, out, outputs, weights, arrivals,
    scale, table_stride, head_stride, places, PLACES: tl.constexpr,
    PAGE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    place, tile, head, split = tl.program_id(0), 0, tl.program_id(1), tl.program_id(2)
    if PLACES > 0:
        place, tile = _tile_of(place, counts, places, PLACES, QUERIES)
    new, held = tl.load(counts + place), tl.load(lengths + place)
    start, lane = tl.load(starts + place), tl.load(lanes + place)
    left = new - tile * QUERIES  # new streams from this tile on
    count = tl.minimum(left, QUERIES)
    length = held - (left - count)
    share = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), KEYS), 1) * KEYS
    used = tl.cdiv(length, share)
    # Lane and start say nothing new; with them here all four are loaded at once, and not two of them after the branch.
    if (left <= 0) | (split >= used) | (lane < 0) | (start < 0):
        return
    i, channel, j = tl.arange(0, QUERIES), tl.arange(0, CHANNELS), tl.arange(0, KEYS)
    row = start + tile * QUERIES + i
    ours = (i < count)[:, None] & (channel < WIDTH)[None, :]
    q = tl.load(queries + (row[:, None] * HEADS + head) * WIDTH + channel[None, :], mask=ours, other=0.0)
    last = length - count + i  # the last key that each query sees: its own
    pages = table + lane * table_stride
    keys += head * head_stride.to(tl.int64)
    values += head * head_stride.to(tl.int64)

    begin, end = split * share, tl.minimum(length, (split + 1) * share)
    slot = _slots(pages, begin + j, end, PAGE)
    highest = tl.full([QUERIES], -1e30, tl.float32)  # finite, for a query may see nothing of this part
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for first in range(begin, end, KEYS):
        key = first + j
        there = (key < end)[:, None] & (channel < WIDTH)[None, :]
        k = tl.load(keys + slot[:, None].to(tl.int64) * WIDTH + channel[None, :], mask=there, other=0.0)
        v = tl.load(values + slot[:, None].to(tl.int64) * WIDTH + channel[None, :], mask=there, other=0.0)
        slot = _slots(pages, key + KEYS, end, PAGE)  # ahead, so that keys and values wait for no load
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        logits = tl.where(key[None, :] <= last[:, None], logits, float("-inf"))
        peak = tl.maximum(highest, tl.max(logits, axis=1))
        p = tl.exp2(logits - peak[:, None])
        decay = tl.exp2(highest - peak)
        mixed = tl.dot(p.to(v.dtype), v, mixed * decay[:, None], input_precision=PRECISION)
        total = total * decay + tl.sum(p, axis=1)
        highest = peak
    y = mixed / tl.where(total > 0, total, 1.0)[:, None]
    if SPLITS > 1:
        if used > 1:
            at = (row * HEADS + head) * SPLITS
            weight = tl.where(total > 0, highest + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
            tl.store(weights + at + split, weight, mask=i < count)
            tl.store(outputs + (at + split)[:, None] * WIDTH + channel[None, :], y, mask=ours)
            tl.debug_barrier()  # all threads have written before one of them says so
            if tl.atomic_add(arrivals + place * HEADS + head, 1, sem="acq_rel") < used - 1:
                return
            tl.debug_barrier()
            tl.store(arrivals + place * HEADS + head, 0)
            y = _put_together(outputs, weights, at, used, i < count, ours, channel, WIDTH, QUERIES, CHANNELS, SPLITS)
    tl.store(out + (row[:, None] * HEADS + head) * WIDTH + channel[None, :], y.to(out.dtype.element_ty), mask=ours)


@triton.jit
def _tile_of(index, counts, places, PLACES: tl.constexpr, QUERIES: tl.constexpr):
    """The place that has a tile of queries, and which of its own that is; where there are fewer, one that it has not.

    Each place has as many as its new streams fill, and they follow one after the other.
    """
    place = tl.arange(0, PLACES)
    tiles = tl.cdiv(tl.load(counts + place, mask=place < places, other=0), QUERIES)
    before = (tl.cumsum(tiles, 0) <= index) & (place < places - 1)
    return tl.sum(before.to(tl.int32)), index - tl.sum(tl.where(before, tiles, 0))


@triton.jit
def _slots(pages, key, end, PAGE: tl.constexpr):
    """Where the keys before `end` lie; nothing is looked up for those beyond."""
    page, offset = key.to(tl.uint32) // PAGE, key.to(tl.uint32) % PAGE  # without a sign, a shift and a mask
    return tl.load(pages + page, mask=key < end, other=0) * PAGE + offset.to(tl.int32)


@triton.jit
def _put_together(
    outputs, weights, at, used, present, ours, channel,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    s = tl.arange(0, SPLITS)
    weight = tl.load(weights + at[:, None] + s[None, :], mask=present[:, None] & (s < used)[None, :],
                     other=float("-inf"), cache_modifier=".cg")  # fmt: skip
    peak = tl.max(weight, axis=1)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.sum(tl.exp2(weight - peak[:, None]), axis=1)
    total = tl.where(total > 0, total, 1.0)
    y = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for part in tl.static_range(SPLITS):
        own = tl.load(weights + at + part, mask=present & (part < used), other=float("-inf"), cache_modifier=".cg")
        some = tl.load(outputs + (at + part)[:, None] * WIDTH + channel[None, :], mask=ours & (part < used), other=0.0,
                       cache_modifier=".cg")  # fmt: skip
        y += some * (tl.exp2(own - peak) / total)[:, None]
    return y
