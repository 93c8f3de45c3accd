"""LayerNorm and linear layers over live rows, each fused with what follows it.

Letters: M rows that there may be, D model width, K inputs, O outputs, N heads, H head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.tiles import LIBRARY_ROWS, Tiles, precision, tiles_of


@dataclass(frozen=True)
class Recent:
    """The keys and values of a step's own streams, end to end as its rows are; rounded as those in the cache are."""

    keys: Tensor
    """(M,N,H)."""
    values: Tensor
    """(M,N,H)."""


@dataclass(frozen=True)
class Unreduced:
    """The output of a linear layer before it is added to the streams."""

    sums: Tensor
    """(parts,M,D) float32, one part for each program that shares the inputs; or one in the dtype of the streams."""
    bias: Tensor | None
    """(D,)."""


@dataclass(frozen=True)
class Normed:
    """A LayerNorm of the rows that a product reads."""

    norm: nn.LayerNorm
    tiles: Tiles
    update: Unreduced | None = None
    into: Tensor | None = None
    """(M,D), where the streams go with the update added."""


def _norm_of(norm: Normed | None) -> dict[str, Any]:
    if norm is None:
        return {"gain": None, "shift": None, "eps": 0.0, "sums": None, "added": None, "into": None, "PARTS": 0}
    update = norm.update
    return {"gain": norm.norm.weight, "shift": norm.norm.bias, "eps": norm.norm.eps,
            "sums": update.sums if update else None, "added": update.bias if update else None, "into": norm.into,
            "PARTS": len(update.sums) if update else 0}  # fmt: skip


def normalise(
    *, x: Tensor, norm: nn.LayerNorm | None, out: Tensor, rows: Rows, update: Unreduced | None = None
) -> None:
    """Add the update to x, and write out = LN(x), both for the live rows of x (M,D); without a norm only add."""
    weight, bias, eps = (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)
    sums, added = (update.sums, update.bias) if update else (None, None)
    _normalise[(x.shape[0],)](
        x=x, sums=sums, added=added, score=rows.score, weight=weight, bias=bias, out=out, live=rows.live, eps=eps,
        rows=x.shape[0], width=x.shape[1], PARTS=len(sums) if sums is not None else 0,
        WIDTH=triton.next_power_of_2(x.shape[1]),
    )  # fmt: skip


def gelu_linear(
    *, x: Tensor, layer: nn.Linear, out: Tensor, rows: Rows, tanh: bool, norm: Normed | None = None
) -> None:
    """Write out = GELU(W · x + b) (M,O) for the live rows of x (M,K); `tanh` chooses `gelu_tanh`."""
    tiles = norm.tiles if norm else tiles_of(x, out.shape[1], rows.usual)
    grid = (triton.cdiv(out.shape[1], tiles.columns), triton.cdiv(x.shape[0], tiles.rows))
    _gelu_linear[grid](
        x=x, weight=layer.weight, bias=layer.bias, out=out, live=rows.live, rows=x.shape[0], outputs=out.shape[1],
        K=x.shape[1], TANH=tanh, ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, PRECISION=precision(x),
        num_warps=tiles.warps, num_stages=tiles.stages, SPLITS=tiles.warps, MOVE=tiles.stages % 2, score=rows.score, **_norm_of(norm),
    )  # fmt: skip


def narrow_residual(*, x: Tensor, layer: nn.Linear, residual: Tensor, rows: Rows, tiles: Tiles) -> None:
    """Add exp(c) · (W · x + b) to `residual` (M,O), few rows."""
    grid = (triton.cdiv(residual.shape[1], tiles.columns), triton.cdiv(x.shape[0], tiles.rows))
    _narrow_residual[grid](
        x=x, weight=layer.weight, bias=layer.bias, residual=residual, score=rows.score, live=rows.live,
        rows=x.shape[0], outputs=residual.shape[1], K=x.shape[1], ROWS=tiles.rows, COLUMNS=tiles.columns,
        DEPTH=tiles.depth, SPLITS=tiles.warps, MOVE=tiles.stages % 2, num_warps=tiles.warps,
    )  # fmt: skip


def residual_linear(*, x: Tensor, layer: nn.Linear, residual: Tensor, rows: Rows, scratch: Tensor,
                    counts: Tensor | None = None) -> Unreduced | None:
    """Add exp(c) · (W · x + b) to `residual` (M,O), for the live rows of x (M,K) and their scores c.

    If it is faster that several programs share the inputs, return their sums, which lie in `scratch`, for `normalise`
    to add. With many rows the library multiplies, which is faster, also those rows that are not live.
    """
    if LIBRARY_ROWS <= x.shape[0] <= rows.usual and x.dtype != torch.float32:
        product = scratch.view(x.dtype)[: residual.numel()].view(1, *residual.shape)
        torch.mm(x, layer.weight.T, out=product[0])
        return Unreduced(product, layer.bias)
    tiles = tiles_of(x, residual.shape[1], rows.usual)
    share = triton.cdiv(triton.cdiv(x.shape[1], tiles.parts), tiles.depth) * tiles.depth
    parts = triton.cdiv(x.shape[1], share)  # fewer if there are few inputs
    grid = (triton.cdiv(residual.shape[1], tiles.columns), triton.cdiv(x.shape[0], tiles.rows), parts)
    sums = scratch[: parts * residual.numel()].view(parts, *residual.shape) if parts > 1 else None
    _residual_linear[grid](
        x=x, weight=layer.weight, bias=layer.bias, residual=residual, sums=sums, score=rows.score, live=rows.live,
        rows=x.shape[0], outputs=residual.shape[1], K=x.shape[1], ROWS=tiles.rows, COLUMNS=tiles.columns,
        DEPTH=tiles.depth, PARTS=parts, SHARE=share, PRECISION=precision(x), num_warps=tiles.warps,
        num_stages=tiles.stages, counts=counts,
    )  # fmt: skip
    return Unreduced(sums, layer.bias) if sums is not None and counts is None else None


def project_heads(
    *, x: Tensor, layer: nn.Linear, queries: Tensor, keys: Tensor, values: Tensor, rows: Rows, scored: bool,
    recent: Recent | None = None, cumulative: Tensor | None = None, norm: Normed | None = None,
) -> None:  # fmt: skip
    """Write queries, keys and values of the live rows of x (M,D) for attention (SPEC.md, "Attenuated block").

    Queries and keys are rotated by the angles of their positions. If `scored`, the last channel of queries becomes 1
    and that of keys the score c, and values are multiplied by exp(c). Queries are (M,N,H); keys and values go to a
    layer of the cache (N,slots,H), at each row's slot, and to `recent`. If that has 8 bits, c goes to `cumulative`
    (slots,) instead, as `SegmentPages` says; what `recent` gets is rounded before it is scored.
    """
    tiles = norm.tiles if norm else tiles_of(x, 3 * x.shape[1], rows.usual)
    heads, width = queries.shape[1:]
    half = min(triton.next_power_of_2(max(16, width) // 2), tiles.columns // 2)
    blocks = triton.cdiv(width // 2, half)
    together = next(n for n in (4, 2, 1) if heads % n == 0 and 2 * half * n <= max(tiles.columns, 2 * half))
    grid = (3 * heads // together * blocks, triton.cdiv(x.shape[0], tiles.rows))
    _project_heads[grid](
        x=x, weight=layer.weight, bias=layer.bias, queries=queries, keys=keys, values=values,
        recent_keys=recent.keys if recent else None, recent_values=recent.values if recent else None,
        cumulative=cumulative, slots=rows.slot, score=rows.score, cosines=rows.cos, sines=rows.sin, live=rows.live,
        rows=x.shape[0], head_stride=keys.stride(0), K=x.shape[1], HEADS=heads, WIDTH=width, PAGE=rows.page_size,
        SCORED=scored, BLOCKS=blocks, TOGETHER=together, ROWS=tiles.rows, HALF=half, DEPTH=tiles.depth,
        PRECISION=precision(x), num_warps=tiles.warps, num_stages=tiles.stages, SPLITS=tiles.warps, MOVE=tiles.stages % 2, **_norm_of(norm),
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _normalise(
    x, sums, added, score, weight, bias, out, live, eps, rows, width,
    PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0), tl.arange(0, WIDTH)
    if row >= tl.load(live):
        return
    inside = d < width
    at = row * width + d
    own = tl.load(x + at, mask=inside, other=0.0)
    gain, shift = (
        _channels(weight, d, inside),
        _channels(bias, d, inside),
    )  # loaded here: below they would wait for sums
    if PARTS > 0:
        update = tl.zeros([WIDTH], tl.float32)
        for part in tl.static_range(PARTS):
            update += tl.load(sums + part * rows * width + at, mask=inside, other=0.0)
        update += _channels(added, d, inside)
        own = (own.to(tl.float32) + tl.exp(tl.load(score + row)) * update).to(own.dtype)
        tl.store(x + at, own, mask=inside)
    if weight is not None:
        own = own.to(tl.float32)
        centred = tl.where(inside, own - tl.sum(own) / width, 0.0)
        y = centred / tl.sqrt(tl.sum(centred * centred) / width + eps) * gain + shift
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _channels(parameter, d, inside):
    """Return a parameter (D,) in float32, or zeros for None."""
    channels = tl.zeros(d.shape, tl.float32)
    if parameter is not None:
        channels = tl.load(parameter + d, mask=inside, other=0.0).to(tl.float32)
    return channels


@triton.jit
def _dead(live, ROWS: tl.constexpr):
    """Return whether this program's rows begin beyond the live ones.

    The first program computes its rows in any case, so that it need not wait for the number of live ones: they are all
    beyond it only if the batch is empty, and then do no harm.
    """
    dead = False
    if tl.program_id(1) > 0:
        dead = tl.program_id(1) * ROWS >= tl.load(live)
    return dead


@triton.jit
def _product(
    x, weight, row, column, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, SHARE: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return Σ x[row, k] · weight[column, k] over SHARE k from `first` on."""
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, SHARE, DEPTH):
        k = first + start + tl.arange(0, DEPTH)
        if K % SHARE == 0 and SHARE % DEPTH == 0:
            w = tl.load(weight + column[:, None] * K + k[None, :])
            a = tl.load(x + row[:, None] * K + k[None, :])
        else:
            w = tl.load(weight + column[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)
            a = tl.load(x + row[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)
        accumulator = tl.dot(a, tl.trans(w), accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def _apart(tile, SPLITS: tl.constexpr):
    """Return a tile (R,DEPTH) as (SPLITS,R,DEPTH/SPLITS)."""
    return tl.permute(tl.reshape(tile, [tile.shape[0], SPLITS, tile.shape[1] // SPLITS]), (1, 0, 2))


@triton.jit
def _shuffled(tile, SPLITS: tl.constexpr):
    """As `_apart`, with the inputs of each share in the order of `_weights`."""
    R: tl.constexpr = tile.shape[0]
    SHARE: tl.constexpr = tile.shape[1] // SPLITS
    eights = tl.reshape(tile, [R, SPLITS, SHARE // 32, 4, 4, 2])  # rows, share, block, lane, step and half, pair
    return tl.reshape(tl.permute(eights, (1, 0, 2, 4, 3, 5)), [SPLITS, R, SHARE])


@triton.jit
def _column_of(c, first, other, HALF: tl.constexpr, WIDTH: tl.constexpr):
    """Return the column of the whole product that is column c of a program's tile."""
    if HALF == 0:
        return tl.minimum(first + c, other)
    pair = tl.minimum(other + c % (2 * HALF) // 2, WIDTH // 2 - 1)
    return (first + c // (2 * HALF)) * WIDTH + pair + c % 2 * (WIDTH // 2)


@triton.jit
def _weights(weight, first, other, HALF: tl.constexpr, WIDTH: tl.constexpr, start, K: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, DEPTH: tl.constexpr):
    """Return weights (SPLITS·COLUMNS·DEPTH/SPLITS/32,32), each where the tensor cores want it: nothing moves."""
    SHARE: tl.constexpr = DEPTH // SPLITS
    r = tl.arange(0, COLUMNS * DEPTH // 32)
    s, c_hi, block = r // 8 % SPLITS, r // (8 * SPLITS) % (COLUMNS // 8), r // (SPLITS * COLUMNS)
    k = start + s * SHARE + block * 32
    at = weight + _column_of(c_hi * 8 + r % 8, first, other, HALF, WIDTH) * K + k
    return tl.load(at[:, None] + tl.arange(0, 32)[None, :])


@triton.jit
def _placed(tile, COLUMNS: tl.constexpr, SPLITS: tl.constexpr):
    """Return what `_weights` read as (SPLITS,COLUMNS,SHARE)."""
    BLOCKS: tl.constexpr = tile.shape[0] // (SPLITS * COLUMNS)
    parts = tl.reshape(tile, [BLOCKS, COLUMNS // 8, SPLITS, 8, 4, 4, 2])
    return tl.reshape(tl.permute(parts, (2, 1, 3, 0, 5, 4, 6)), [SPLITS, COLUMNS, BLOCKS * 32])


@triton.jit
def _columns_of(at, k, K: tl.constexpr, DEPTH: tl.constexpr):
    if K % DEPTH == 0:
        return tl.load(at + k[None, :])
    return tl.load(at + k[None, :], mask=(k < K)[None, :], other=0.0)


@triton.jit
def _few_product(
    x, weight, row, first, other, HALF: tl.constexpr, WIDTH: tl.constexpr, rows, gain, shift, eps, score, sums, added,
    into, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, SPLITS: tl.constexpr, DEPTH: tl.constexpr,
    PARTS: tl.constexpr, MOVE: tl.constexpr,
):  # fmt: skip
    """Return Σ LN(x)[row, k] · weight[column, k], or without a gain Σ x[row, k] · weight[column, k].

    All is read before anything is computed. Each of SPLITS warps multiplies its share of the inputs.
    """
    STILL: tl.constexpr = K % DEPTH == 0 and DEPTH // SPLITS % 32 == 0 and MOVE == 0
    j, present = tl.arange(0, DEPTH), (row < rows)[:, None]
    column = _column_of(tl.arange(0, COLUMNS), first, other, HALF, WIDTH)
    ws, xs, gains, shifts, updates = (), (), (), (), ()
    for start in tl.static_range(0, K, DEPTH):
        if STILL:
            ws = ws + (_weights(weight, first, other, HALF, WIDTH, start, K, COLUMNS, SPLITS, DEPTH),)
        else:
            ws = ws + (_columns_of(weight + column[:, None] * K, start + j, K, DEPTH),)
    for start in tl.static_range(0, K, DEPTH):
        k = start + j
        mask = present & (k < K)[None, :]
        xs = xs + (tl.load(x + row[:, None] * K + k[None, :], mask=mask, other=0.0),)
        if gain is not None:
            gains = gains + (tl.load(gain + k, mask=k < K, other=0.0),)
        if shift is not None:
            shifts = shifts + (tl.load(shift + k, mask=k < K, other=0.0),)
        if PARTS > 0:
            update = tl.zeros([ROWS, DEPTH], tl.float32)
            for part in tl.static_range(PARTS):
                update += tl.load(sums + (part * rows + row[:, None]) * K + k[None, :], mask=mask, other=0.0)
            updates = updates + (update + _channels(added, k, k < K)[None, :],)
    total, square = tl.zeros([ROWS, DEPTH], tl.float32), tl.zeros([ROWS, DEPTH], tl.float32)
    if PARTS > 0:
        p = tl.exp(tl.load(score + row, mask=row < rows, other=0.0))[:, None]
    ys = ()
    for start in tl.static_range(0, K, DEPTH):
        y = xs[start // DEPTH]
        if PARTS > 0:
            y = (y.to(tl.float32) + p * updates[start // DEPTH]).to(y.dtype)
        if into is not None:
            if tl.program_id(0) == 0:
                k = start + j
                tl.store(into + row[:, None] * K + k[None, :], y, mask=present & (k < K)[None, :])
        if gain is not None:
            y = y.to(tl.float32)
            total += y
        ys = ys + (y,)
    if gain is not None:
        mean = (tl.sum(total, axis=1) / K)[:, None]
        for start in tl.static_range(0, K, DEPTH):
            y = tl.where((start + j < K)[None, :], ys[start // DEPTH] - mean, 0.0)
            square += y * y
        scale = (1.0 / tl.sqrt(tl.sum(square, axis=1) / K + eps))[:, None]
    accumulator = tl.zeros([SPLITS, COLUMNS, ROWS], tl.float32)
    for start in tl.static_range(0, K, DEPTH):
        y = ys[start // DEPTH]
        if gain is not None:
            y = (y - mean) * scale * gains[start // DEPTH].to(tl.float32)[None, :]
            if shift is not None:
                y += shifts[start // DEPTH].to(tl.float32)[None, :]
        w = ws[start // DEPTH]
        if STILL:
            y = tl.permute(_shuffled(y.to(w.dtype), SPLITS), (0, 2, 1))
            accumulator = tl.dot(_placed(w, COLUMNS, SPLITS), y, accumulator, input_precision="ieee")
        else:
            y = tl.permute(_apart(y.to(w.dtype), SPLITS), (0, 2, 1))
            accumulator = tl.dot(_apart(w, SPLITS), y, accumulator, input_precision="ieee")
    return tl.trans(tl.sum(accumulator, axis=0))


@triton.jit(do_not_specialize=["rows"])
def _narrow_residual(
    x, weight, bias, residual, score, live, rows, outputs,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SPLITS: tl.constexpr,
    MOVE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < outputs
    if _dead(live, ROWS):
        return
    own, count = _channels(bias, column, inside), tl.load(live)
    p = tl.exp(tl.load(score + row, mask=row < rows, other=0.0))[:, None]
    at = row[:, None] * outputs + column[None, :]
    before = tl.load(residual + at, mask=(row < rows)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    product = _few_product(x, weight, row, tl.program_id(0) * COLUMNS, outputs - 1, 0, 0, rows, None, None, 0.0, None, None, None,
                           None, ROWS, COLUMNS, K, SPLITS, DEPTH, 0, MOVE)  # fmt: skip
    y = before + p * (product + own[None, :])
    tl.store(residual + at, y.to(residual.dtype.element_ty), mask=(row < count)[:, None] & inside[None, :])


@triton.jit
def _bias(accumulator, bias, column, present):
    if bias is not None:
        accumulator += tl.load(bias + column, mask=present, other=0.0).to(tl.float32)[None, :]
    return accumulator


@triton.jit
def _gelu(x, TANH: tl.constexpr):
    if TANH:
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["rows"])
def _gelu_linear(
    x, weight, bias, out, live, rows, outputs, gain, shift, eps, score, sums, added, into,
    K: tl.constexpr, TANH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr, MOVE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    clamped = tl.minimum(column, outputs - 1)
    if _dead(live, ROWS):
        return
    own, count = _channels(bias, column, column < outputs), tl.load(live)
    if gain is None:
        product = _product(x, weight, tl.minimum(row, rows - 1), clamped, 0, ROWS, COLUMNS, K, K, DEPTH, PRECISION)
    else:
        product = _few_product(x, weight, row, tl.program_id(0) * COLUMNS, outputs - 1, 0, 0, rows, gain, shift, eps, score, sums, added, into, ROWS, COLUMNS,
                               K, SPLITS, DEPTH, PARTS, MOVE)  # fmt: skip
    y = _gelu(product + own[None, :], TANH)
    tl.store(out + row[:, None] * outputs + column[None, :], y.to(out.dtype.element_ty),
             mask=(row < count)[:, None] & (column < outputs)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _residual_linear(
    x, weight, bias, residual, sums, score, live, rows, outputs, counts,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr,
    SHARE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    clamped, first = tl.minimum(column, outputs - 1), tl.program_id(2) * SHARE
    if _dead(live, ROWS):
        return
    count, at, inside = tl.load(live), row[:, None] * outputs + column[None, :], column < outputs
    if counts is not None:
        own, p = _channels(bias, column, inside), tl.exp(tl.load(score + row, mask=row < rows, other=0.0))[:, None]
        old = tl.load(residual + at, mask=(row < rows)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    product = _product(x, weight, tl.minimum(row, rows - 1), clamped, first, ROWS, COLUMNS, K, SHARE, DEPTH, PRECISION)
    present = row < count
    mask = present[:, None] & inside[None, :]
    if PARTS > 1:
        tl.store(sums + tl.program_id(2) * rows * outputs + at, product, mask=mask)
        if counts is not None:
            tl.debug_barrier()
            tile = counts + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
            if tl.atomic_add(tile, 1, sem="acq_rel") == PARTS - 1:
                tl.store(tile, 0)
                update = tl.zeros([ROWS, COLUMNS], tl.float32)
                for part in tl.static_range(PARTS):
                    update += tl.load(sums + part * rows * outputs + at, mask=mask, other=0.0, cache_modifier=".cg")
                old += p * (update + own[None, :])
                tl.store(residual + at, old.to(residual.dtype.element_ty), mask=mask)
    else:
        update = tl.exp(tl.load(score + row, mask=present, other=0.0))[:, None] * _bias(product, bias, column, inside)
        before = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(residual + at, (before + update).to(residual.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _project_heads(
    x, weight, bias, queries, keys, values, recent_keys, recent_values, cumulative, slots, score, cosines, sines,
    live, rows, head_stride, gain, shift, eps, sums, added, into,
    K: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, SCORED: tl.constexpr,
    BLOCKS: tl.constexpr, TOGETHER: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr, PARTS: tl.constexpr, MOVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program computes TOGETHER whole heads, or a block of the channels of one."""
    group = tl.program_id(0) // BLOCKS
    part = group // (HEADS // TOGETHER)  # 0 queries, 1 keys, 2 values
    first, begin = group % (HEADS // TOGETHER) * TOGETHER, tl.program_id(0) % BLOCKS * HALF
    j = tl.arange(0, TOGETHER * 2 * HALF)  # channels and partners by turns: a thread has two adjacent columns
    pair = tl.minimum(begin + j % (2 * HALF) // 2, WIDTH // 2 - 1)  # the channel's half; i + H/2 is the partner of i
    column = (part * HEADS + first + j // (2 * HALF)) * WIDTH + pair + j % 2 * (WIDTH // 2)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if _dead(live, ROWS):
        return
    own, live_rows = _channels(bias, column, j >= 0), tl.load(live)
    r, i = row[:, None, None], (begin + tl.arange(0, HALF))[None, None, :]
    head = (first + tl.arange(0, TOGETHER))[None, :, None]
    inside = i < WIDTH // 2
    c = tl.load(score + r, mask=r < rows, other=0.0)
    slot = tl.load(slots + r, mask=r < rows, other=0).to(tl.int64)
    cos = tl.load(cosines + r * (WIDTH // 2) + i, mask=(r < rows) & inside, other=0.0)
    sin = tl.load(sines + r * (WIDTH // 2) + i, mask=(r < rows) & inside, other=0.0)
    if gain is None:
        product = _product(
            x, weight, tl.minimum(row, rows - 1), column, 0, ROWS, TOGETHER * 2 * HALF, K, K, DEPTH, PRECISION
        )
    else:
        product = _few_product(x, weight, row, part * HEADS + first, begin, HALF, WIDTH, rows, gain, shift, eps, score, sums, added, into, ROWS,
                               TOGETHER * 2 * HALF, K, SPLITS, DEPTH, PARTS, MOVE)  # fmt: skip
    row = r
    product += own[None, :]
    a1, a2 = tl.split(tl.reshape(product, [ROWS, TOGETHER, HALF, 2]))
    present = row < live_rows
    mask = present & inside
    y1, y2 = a1, a2
    if part < 2:
        y1, y2 = a1 * cos - a2 * sin, a2 * cos + a1 * sin
    last = i == WIDTH // 2 - 1
    packed = (row * HEADS + head) * WIDTH + i
    if part == 0:
        if SCORED:
            y2 = tl.where(last, 1.0, y2)
        _store(queries + packed, WIDTH // 2, y1, y2, mask)
    else:
        cache, recent = keys, recent_keys
        if part == 2:
            cache, recent = values, recent_values
        cache += head * head_stride.to(tl.int64)
        if cumulative is None:
            y1, y2 = _scored(y1, y2, c, part, last, SCORED)
            _store(cache + slot * WIDTH + i, WIDTH // 2, y1, y2, mask)
        else:
            tl.store(cumulative + slot, c, mask=present & (tl.program_id(0) == HEADS // TOGETHER * BLOCKS))
            y1, y2 = _store_eight_bits(cache, slot, i, y1, y2, part, last, mask, SCORED, WIDTH, PAGE)
            y1, y2 = _scored(y1, y2, c, part, last, SCORED)
        if recent_keys is not None:
            _store(recent + packed, WIDTH // 2, y1, y2, mask)


@triton.jit
def _scored(y1, y2, c, part, last, SCORED: tl.constexpr):
    """Return keys with c in the last channel, values times exp(c)."""
    if SCORED:
        p = tl.where(part == 2, tl.exp(c), 1.0)
        y1, y2 = y1 * p, tl.where(last & (part == 1), c, y2 * p)
    return y1, y2


@triton.jit
def _store_eight_bits(
    into, slot, i, y1, y2, part, last, mask, SCORED: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr
):
    """Store keys or values in 8 bits, as `SegmentPages` says, and return what was stored."""
    if SCORED:
        y2 = tl.where(last & (part == 1), 0.0, y2)
    y1, y2 = y1.to(into.dtype.element_ty), y2.to(into.dtype.element_ty)
    at, step = slot * WIDTH + i, tl.where(part == 2, PAGE, 1)
    at = tl.where(part == 2, slot // PAGE * (PAGE * WIDTH) + slot % PAGE + i * PAGE, at)
    _store(into + at, WIDTH // 2 * step, y1, y2, mask)
    return y1.to(tl.float32), y2.to(tl.float32)


@triton.jit
def _store(at, step, y1, y2, mask):
    """Store both halves of heads, of which partners are a step apart."""
    tl.store(at, y1.to(at.dtype.element_ty), mask=mask)
    tl.store(at + step, y2.to(at.dtype.element_ty), mask=mask)
