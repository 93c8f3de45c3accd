"""Attention of a few new streams over the pages of the fork-state cache (SPEC.md, "Attenuated block").

Letters: B batch slots, M rows that there may be, N heads, H head width.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.overlap import overlapped, wait_for_previous
from thoughtbubbles.engine.cuda.kernels.rows import Span
from thoughtbubbles.engine.cuda.kernels.tiles import precision

_KEYS_AT_ONCE = 64
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Parts:
    """The results of several programs for one query, until the last of them merges them."""

    splits: int
    """Programs that share the keys of a batch slot."""
    outputs: Tensor
    """(M,N,splits,H) float32."""
    weights: Tensor
    """(M,N,splits) float32, the base-2 logarithm of each part's weight."""
    arrivals: Tensor
    """(B,N) int32, programs that have finished; 0 between two launches."""

    @classmethod
    def empty(cls, batch_size: int, rows: int, heads: int, width: int, splits: int, device: torch.device) -> Self:
        """Return memory for the parts; with one program per query there are none."""
        kept = rows if splits > 1 else 0
        return cls(
            splits,
            torch.empty((kept, heads, splits, width), device=device),
            torch.empty((kept, heads, splits), device=device),
            torch.zeros((batch_size, heads), dtype=torch.int32, device=device),
        )


def paged_attention(
    *, queries: Tensor, keys: Tensor, values: Tensor, span: Span, out: Tensor, parts: Parts, most: int
) -> None:
    """Attend from the new streams of each batch slot to all its streams, causally in stream order: out (M,N·H).

    Queries (M,N,H) lie end to end, at most `most` per slot, which one program computes. Keys and values (N,slots,H) are
    a layer of the cache, which already has the new ones, after the others of their request. Only keys of `span` are
    read.
    """
    _, heads, width = queries.shape
    tile = max(16, triton.next_power_of_2(most))
    warps, stages = _warps_and_stages(queries.dtype, tile, parts.splits)
    _paged_attention[(span.batch_size, heads, parts.splits)](
        queries=queries, keys=keys, values=values, table=span.table, lanes=span.lane, starts=span.start,
        counts=span.count, lengths=span.length, out=out, outputs=parts.outputs, weights=parts.weights,
        arrivals=parts.arrivals, scale=width**-0.5 * LOG2_E, table_stride=span.table.stride(0),
        head_stride=keys.stride(0), PAGE=span.page_size, HEADS=heads, WIDTH=width,
        CHANNELS=max(16, triton.next_power_of_2(width)), QUERIES=tile, KEYS=_KEYS_AT_ONCE,
        SPLITS=parts.splits, PRECISION=precision(queries), num_warps=warps, num_stages=stages, **overlapped(queries),
    )  # fmt: skip


def _warps_and_stages(dtype: torch.dtype, tile: int, splits: int) -> tuple[int, int]:
    """Return the warps of a program, and its stages; each stage but one buffers keys and values of one iteration.

    The values for few queries were measured on an H100, with 1 to 256 slots of 100 to 2,000 tokens and heads of 64
    channels. Two warps synchronise faster than four, but have too few registers for float32. If programs share keys,
    there are too few of them to hide latency, so each loads keys two iterations ahead.
    """
    if tile > 16 or dtype == torch.float32:
        return 4, 2
    return 2, 2 if splits == 1 else 3


@triton.jit(do_not_specialize=["table_stride"])
def _paged_attention(
    queries, keys, values, table, lanes, starts, counts, lengths, out, outputs, weights, arrivals,
    scale, table_stride, head_stride,
    PAGE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i, channel, j = tl.arange(0, QUERIES), tl.arange(0, CHANNELS), tl.arange(0, KEYS)
    count, length, start, lane, share, used = share_of(counts, lengths, starts, lanes, b, KEYS, SPLITS)
    begin, end, old = split * share, tl.minimum(length, (split + 1) * share), length - count
    pages, wide = table + tl.maximum(lane, 0) * table_stride, (channel < WIDTH)[None, :]
    keys += head * head_stride.to(tl.int64)
    values += head * head_stride.to(tl.int64)
    slot = slots_of(pages, begin + j, end, PAGE)
    if SPLITS > 1:  # with so many batch slots that programs do not share keys, it took longer
        # the kernel before writes new streams: the others may be read before it has ended
        at, key = slot[:, None].to(tl.int64) * WIDTH + channel[None, :], begin + j
        mask = (key < tl.minimum(old, end))[:, None] & wide
        k, v = tl.load(keys + at, mask=mask, other=0.0), tl.load(values + at, mask=mask, other=0.0)
        slot = slots_of(pages, key + KEYS, end, PAGE)
    wait_for_previous()
    # `lane` and `start` are tested only so that all four loads are issued before the branch, not two of them after it.
    if (count <= 0) | (split >= used) | (lane < 0) | (start < 0):
        return
    row = start + i
    inside = (i < count)[:, None] & wide
    q = tl.load(queries + (row[:, None] * HEADS + head) * WIDTH + channel[None, :], mask=inside, other=0.0)
    last = old + i  # the last key that each query attends to: its own

    highest = tl.full([QUERIES], -1e30, tl.float32)  # finite: a query may attend to no key of this part
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, CHANNELS], tl.float32)
    if SPLITS > 1:
        mask = ((key >= old) & (key < end))[:, None]
        # not from the L1 cache, which may have what was there before
        k = tl.where(mask, tl.load(keys + at, mask=mask & wide, other=0.0, cache_modifier=".cg"), k)
        v = tl.where(mask, tl.load(values + at, mask=mask & wide, other=0.0, cache_modifier=".cg"), v)
        highest, total, mixed = _attend(q, k, v, key, last, scale, highest, total, mixed, PRECISION)
        begin += KEYS
    for first in range(begin, end, KEYS):
        key = first + j
        at = slot[:, None].to(tl.int64) * WIDTH + channel[None, :]
        k = tl.load(keys + at, mask=(key < end)[:, None] & wide, other=0.0)
        v = tl.load(values + at, mask=(key < end)[:, None] & wide, other=0.0)
        slot = slots_of(pages, key + KEYS, end, PAGE)  # one iteration ahead, so that keys and values do not wait for it
        highest, total, mixed = _attend(q, k, v, key, last, scale, highest, total, mixed, PRECISION)
    y = mixed / tl.where(total > 0, total, 1.0)[:, None]
    y, mine = join_parts(y, highest, total, outputs, weights, arrivals, row, head, split, used, i < count, inside,
                         channel, HEADS, WIDTH, QUERIES, CHANNELS, SPLITS)  # fmt: skip
    tl.store(out + (row[:, None] * HEADS + head) * WIDTH + channel[None, :], y.to(out.dtype.element_ty),
             mask=inside & mine)  # fmt: skip


@triton.jit
def _attend(q, k, v, key, last, scale, highest, total, mixed, PRECISION: tl.constexpr):
    """Add some keys and their values to a softmax over those before: its highest logit, its total and its result."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    logits = tl.where(key[None, :] <= last[:, None], logits, float("-inf"))
    peak = tl.maximum(highest, tl.max(logits, axis=1))
    p = tl.exp2(logits - peak[:, None])
    decay = tl.exp2(highest - peak)
    mixed = tl.dot(p.to(v.dtype), v, mixed * decay[:, None], input_precision=PRECISION)
    return peak, total * decay + tl.sum(p, axis=1), mixed


@triton.jit
def share_of(counts, lengths, starts, lanes, b, KEYS: tl.constexpr, SPLITS: tl.constexpr):
    """Return what `Span` says of batch slot b, the keys of each program that shares them, and how many have some."""
    count, length = tl.load(counts + b), tl.load(lengths + b)
    start, lane = tl.load(starts + b), tl.load(lanes + b)
    share = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), KEYS), 1) * KEYS
    return count, length, start, lane, share, tl.cdiv(length, share)


@triton.jit
def join_parts(
    y, highest, total, outputs, weights, arrivals, row, head, split, used, present, inside, channel,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, CHANNELS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Write a part y (QUERIES,CHANNELS) to memory for the last program of its batch slot and head, which merges all.

    Return the result, and whether this program has it: it is the last, or the only one.
    """
    mine = used > 0
    if SPLITS > 1:
        if used > 1:
            at, arrival = (row * HEADS + head) * SPLITS, arrivals + tl.program_id(0) * HEADS + head
            weight = tl.where(total > 0, highest + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
            tl.store(weights + at + split, weight, mask=present)
            tl.store(outputs + (at + split)[:, None] * WIDTH + channel[None, :], y, mask=inside)
            tl.debug_barrier()  # all threads write before one of them counts the program as finished
            mine = tl.atomic_add(arrival, 1, sem="acq_rel") == used - 1
            if mine:
                tl.debug_barrier()
                tl.store(arrival, 0)
                y = _merge(outputs, weights, at, used, present, inside, channel, WIDTH, QUERIES, CHANNELS, SPLITS)
    return y, mine


@triton.jit
def slots_of(pages, key, end, PAGE: tl.constexpr):
    """Return the cache slots of keys before `end`; the pages of others are not read."""
    page, offset = key.to(tl.uint32) // PAGE, key.to(tl.uint32) % PAGE  # unsigned: a shift and a mask
    return tl.load(pages + page, mask=key < end, other=0) * PAGE + offset.to(tl.int32)


@triton.jit
def _merge(
    outputs, weights, at, used, present, inside, channel,
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
        some = tl.load(outputs + (at + part)[:, None] * WIDTH + channel[None, :], mask=inside & (part < used),
                       other=0.0, cache_modifier=".cg")  # fmt: skip
        y += some * (tl.exp2(own - peak) / total)[:, None]
    return y
