"""LayerNorm and linear layers over live rows, each fused with what follows it.

Letters: M rows that there may be, D model width, K inputs, O outputs, N heads, H head width.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from thoughtbubbles.engine.cuda.kernels.few_rows import column_of, few_channels, few_product, few_weights
from thoughtbubbles.engine.cuda.kernels.overlap import overlapped, read_ahead, wait_for_previous
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.tiles import LIBRARY_ROWS, Tiles, few, few_tiles, precision, tiles_of

_EARLY_ROWS = tl.constexpr(32)
"""The most rows of a tile for which what a kernel does with a product is read before the kernel before has ended, so as
not to wait after it; with more it would take the product's registers."""


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


def normalise(
    *, x: Tensor, norm: nn.LayerNorm | None, out: Tensor, rows: Rows, update: Unreduced | None = None
) -> None:
    """Add the update to x, and write out = LN(x), both for the live rows of x (M,D); without a norm only add."""
    gain, shift, eps = norm_parameters(norm)
    sums, added = (update.sums, update.bias) if update else (None, None)
    _normalise[(x.shape[0],)](
        x=x, sums=sums, added=added, score=rows.score, weight=gain, bias=shift, out=out, live=rows.live, eps=eps,
        rows=x.shape[0], width=x.shape[1], PARTS=len(sums) if sums is not None else 0,
        WIDTH=triton.next_power_of_2(x.shape[1]), **overlapped(x),
    )  # fmt: skip


def gelu_linear(
    *, x: Tensor, layer: nn.Linear, out: Tensor, rows: Rows, tanh: bool, norm: nn.LayerNorm | None = None
) -> None:
    """Write out = GELU(W · x + b) (M,O) for the live rows of x (M,K); `tanh` chooses `gelu_tanh`.

    With a norm, of LN(x) in place of x: for `few` rows.
    """
    tiles = _tiles(x, out.shape[1], rows, norm)
    gain, shift, eps = norm_parameters(norm)
    grid = (triton.cdiv(out.shape[1], tiles.columns), triton.cdiv(x.shape[0], tiles.rows))
    _gelu_linear[grid](
        x=x, weight=layer.weight, bias=layer.bias, gain=gain, shift=shift, eps=eps, out=out, live=rows.live,
        rows=x.shape[0], outputs=out.shape[1], K=x.shape[1], TANH=tanh, ROWS=tiles.rows, COLUMNS=tiles.columns,
        DEPTH=tiles.depth, SPLITS=tiles.splits, PRECISION=precision(x), num_warps=tiles.warps,
        num_stages=tiles.stages, **overlapped(x),
    )  # fmt: skip


def _tiles(x: Tensor, outputs: int, rows: Rows, norm: nn.LayerNorm | None) -> Tiles:
    return few_tiles(x, outputs) if norm else tiles_of(x, outputs, rows.usual)


def norm_parameters(norm: nn.LayerNorm | None) -> tuple[Tensor | None, Tensor | None, float]:
    """Return the gain (D,), shift (D,) and eps of a LayerNorm."""
    return (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)


def residual_linear(*, x: Tensor, layer: nn.Linear, residual: Tensor, rows: Rows, scratch: Tensor) -> Unreduced | None:
    """Add exp(c) · (W · x + b) to `residual` (M,O), for the live rows of x (M,K) and their scores c.

    If it is faster that several programs share the inputs, return their sums, which lie in `scratch`, for `normalise`
    to add. With many rows the library multiplies, which is faster, also those rows that are not live.
    """
    if LIBRARY_ROWS <= x.shape[0] <= rows.usual and x.dtype != torch.float32:
        product = scratch.view(x.dtype)[: residual.numel()].view(1, *residual.shape)
        torch.mm(x, layer.weight.T, out=product[0])
        return Unreduced(product, layer.bias)
    is_few = few(residual, rows.usual)
    tiles = few_tiles(x, residual.shape[1]) if is_few else tiles_of(x, residual.shape[1], rows.usual)
    share = triton.cdiv(triton.cdiv(x.shape[1], tiles.parts), tiles.depth) * tiles.depth
    parts = triton.cdiv(x.shape[1], share)  # fewer if there are few inputs
    grid = (triton.cdiv(residual.shape[1], tiles.columns), triton.cdiv(x.shape[0], tiles.rows), parts)
    sums = scratch[: parts * residual.numel()].view(parts, *residual.shape) if parts > 1 else None
    _residual_linear[grid](
        x=x, weight=layer.weight, bias=layer.bias, residual=residual, sums=sums, score=rows.score, live=rows.live,
        rows=x.shape[0], outputs=residual.shape[1], K=x.shape[1], ROWS=tiles.rows, COLUMNS=tiles.columns,
        DEPTH=tiles.depth, PARTS=parts, SHARE=share, SPLITS=tiles.splits, PRECISION=precision(x), num_warps=tiles.warps,
        num_stages=tiles.stages, **overlapped(x),
    )  # fmt: skip
    return Unreduced(sums, layer.bias) if sums is not None else None


def project_heads(
    *, x: Tensor, layer: nn.Linear, queries: Tensor, keys: Tensor, values: Tensor, rows: Rows, scored: bool,
    first: bool, recent: Recent | None = None, cumulative: Tensor | None = None, norm: nn.LayerNorm | None = None,
) -> None:  # fmt: skip
    """Write queries, keys and values of the live rows of x (M,D) for attention (SPEC.md, "Attenuated block").

    Queries and keys are rotated by the angles of their positions. If `scored`, the last channel of queries becomes 1
    and that of keys the score c, and values are multiplied by exp(c). Queries are (M,N,H); keys and values go to a
    layer of the cache (N,slots,H), at each row's slot, and to `recent`. If that has 8 bits, c goes to `cumulative`
    (slots,) instead, as `SegmentPages` says; what `recent` gets is rounded before it is scored. With a norm they are
    those of LN(x): for `few` rows. `first`: the kernel before may have written the columns of `rows`.
    """
    tiles = _tiles(x, 3 * x.shape[1], rows, norm)
    gain, shift, eps = norm_parameters(norm)
    heads, width = queries.shape[1:]
    half = min(triton.next_power_of_2(max(16, width) // 2), tiles.columns // 2)
    blocks = triton.cdiv(width // 2, half)
    together = next(n for n in (4, 2, 1) if heads % n == 0 and 2 * half * n <= max(tiles.columns, 2 * half))
    grid = (3 * heads // together * blocks, triton.cdiv(x.shape[0], tiles.rows))
    _project_heads[grid](
        x=x, weight=layer.weight, bias=layer.bias, gain=gain, shift=shift, eps=eps, queries=queries, keys=keys,
        values=values, recent_keys=recent.keys if recent else None,
        recent_values=recent.values if recent else None,
        cumulative=cumulative, slots=rows.slot, score=rows.score, cosines=rows.cos, sines=rows.sin, live=rows.live,
        rows=x.shape[0], head_stride=keys.stride(0), K=x.shape[1], HEADS=heads, WIDTH=width, PAGE=rows.page_size,
        SCORED=scored, FIRST=first and tiles.rows <= _EARLY_ROWS.value, BLOCKS=blocks, TOGETHER=together,
        ROWS=tiles.rows, HALF=half, DEPTH=tiles.depth, SPLITS=tiles.splits, PRECISION=precision(x),
        num_warps=tiles.warps, num_stages=tiles.stages, **overlapped(x),
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _normalise(
    x, sums, added, score, weight, bias, out, live, eps, rows, width,
    PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0), tl.arange(0, WIDTH)
    inside = d < width
    gain, shift, own_added = channels_of(weight, d, inside), channels_of(bias, d, inside), channels_of(added, d, inside)
    wait_for_previous()
    if row >= tl.load(live):
        return
    at = row * width + d
    own = tl.load(x + at, mask=inside, other=0.0)
    if PARTS > 0:
        update = tl.zeros([WIDTH], tl.float32)
        for part in tl.static_range(PARTS):
            update += tl.load(sums + part * rows * width + at, mask=inside, other=0.0)
        update += own_added.to(tl.float32)
        own = (own.to(tl.float32) + tl.exp(tl.load(score + row)) * update).to(own.dtype)
        tl.store(x + at, own, mask=inside)
    if weight is not None:
        own = own.to(tl.float32)
        centred = tl.where(inside, own - tl.sum(own) / width, 0.0)
        y = centred / tl.sqrt(tl.sum(centred * centred) / width + eps) * gain.to(tl.float32) + shift.to(tl.float32)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def channels_of(parameter, d, inside):
    """Return a parameter (D,) as it is stored, or zeros for None: a kernel waits for what it computes with."""
    channels = tl.zeros(d.shape, tl.float32)
    if parameter is not None:
        channels = tl.load(parameter + d, mask=inside, other=0.0)
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
def _wait_if(wanted: tl.constexpr):
    if wanted:
        wait_for_previous()


@triton.jit
def _read_weights(
    weight, gain, shift, first, other, HALF: tl.constexpr, WIDTH: tl.constexpr, begin, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, K: tl.constexpr, SHARE: tl.constexpr, DEPTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Return the weights, gains and shifts of `few_product`; if it is not used, have weights on their way only."""
    weights, gains, shifts = (), (), ()
    if SPLITS > 0:
        weights = few_weights(weight, first, other, HALF, WIDTH, COLUMNS, K, DEPTH, SPLITS)
        gains, shifts = few_channels(gain, ROWS, K, DEPTH), few_channels(shift, ROWS, K, DEPTH)
    elif tl.program_id(1) == 0:
        column = column_of(tl.arange(0, COLUMNS), first, other, HALF, WIDTH)
        read_ahead(weight + column * K + begin, tl.minimum(K - begin, SHARE), SHARE)
    return weights, gains, shifts


@triton.jit
def _product(
    x, weight, parameters, eps, row, rows, first, other, HALF: tl.constexpr, WIDTH: tl.constexpr, begin,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, SHARE: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return Σ x[row, k] · weight[column, k] over SHARE k from `begin` on; the columns are those of `column_of`.

    If warps share the inputs (SPLITS), it is `few_product`, with what `_read_weights` returns.
    """
    if SPLITS > 0:
        weights, gains, shifts = parameters
        return few_product(x, weights, gains, shifts, eps, row, rows, ROWS, COLUMNS, K, DEPTH, SPLITS)
    row, column = tl.minimum(row, rows - 1), column_of(tl.arange(0, COLUMNS), first, other, HALF, WIDTH)
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, SHARE, DEPTH):
        k = begin + start + tl.arange(0, DEPTH)
        if K % SHARE == 0 and SHARE % DEPTH == 0:
            w = tl.load(weight + column[:, None] * K + k[None, :])
            a = tl.load(x + row[:, None] * K + k[None, :])
        else:
            w = tl.load(weight + column[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)
            a = tl.load(x + row[:, None] * K + k[None, :], mask=(k < K)[None, :], other=0.0)
        accumulator = tl.dot(a, tl.trans(w), accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def _gelu(x, TANH: tl.constexpr, EXACT: tl.constexpr):
    """Return GELU(x): if not EXACT within 1e-6, which is less than 16 bits round, with half the instructions.

    It is max(x, 0) - |x| erfc(|x|/√2) / 2; erfc is one over the 16th power of a polynomial (Abramowitz and Stegun,
    Handbook of Mathematical Functions, 7.1.28).
    """
    if TANH:
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if EXACT:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    z = tl.abs(x)
    root = z * 5.382975e-06 + 4.889063564344402e-05
    root = root * z + 3.8003575e-05
    root = root * z + 0.0032776263241471684
    root = root * z + 0.02114100615
    root = root * z + 0.04986734696679053
    power = tl.rsqrt(root * z + 1.0)
    for _ in tl.static_range(5):
        power *= power
    return tl.maximum(x, 0.0) - 0.5 * z * power


@triton.jit(do_not_specialize=["rows"])
def _gelu_linear(
    x, weight, bias, gain, shift, eps, out, live, rows, outputs,
    K: tl.constexpr, TANH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    parameters = _read_weights(weight, gain, shift, first, outputs - 1, 0, 0, 0, ROWS, COLUMNS, K, K, DEPTH, SPLITS)
    if ROWS <= _EARLY_ROWS:
        added, count = channels_of(bias, column, column < outputs), tl.load(live)
    wait_for_previous()
    if _dead(live, ROWS):
        return
    product = _product(x, weight, parameters, eps, row, rows, first, outputs - 1, 0, 0, 0, ROWS, COLUMNS, K,
                       K, DEPTH, SPLITS, PRECISION)  # fmt: skip
    if ROWS > _EARLY_ROWS:
        added, count = channels_of(bias, column, column < outputs), tl.load(live)
    y = _gelu(product + added.to(tl.float32)[None, :], TANH, out.dtype.element_ty == tl.float32)
    tl.store(out + row[:, None] * outputs + column[None, :], y.to(out.dtype.element_ty),
             mask=(row < count)[:, None] & (column < outputs)[None, :])  # fmt: skip


@triton.jit
def _before(at, bias, score, column, row, count, inside):
    """Return the streams before the update, the bias and the scores of the first `count` rows."""
    present = row < count
    before = tl.load(at, mask=present[:, None] & inside[None, :], other=0.0)
    return before, channels_of(bias, column, inside), tl.load(score + row, mask=present, other=0.0)


@triton.jit(do_not_specialize=["rows"])
def _residual_linear(
    x, weight, bias, residual, sums, score, live, rows, outputs,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr,
    SHARE: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) * COLUMNS
    column, begin = first + tl.arange(0, COLUMNS), tl.program_id(2) * SHARE
    at, inside = row[:, None] * outputs + column[None, :], column < outputs
    parameters = _read_weights(weight, None, None, first, outputs - 1, 0, 0, begin, ROWS, COLUMNS, K, SHARE, DEPTH,
                               SPLITS)  # fmt: skip
    if ROWS <= _EARLY_ROWS:
        count = tl.load(live)
        if PARTS == 1:
            before, added, c = _before(residual + at, bias, score, column, row, rows, inside)
    wait_for_previous()
    if _dead(live, ROWS):
        return
    product = _product(x, weight, parameters, 0.0, row, rows, first, outputs - 1, 0, 0, begin, ROWS, COLUMNS,
                       K, SHARE, DEPTH, SPLITS, PRECISION)  # fmt: skip
    if ROWS > _EARLY_ROWS:
        count = tl.load(live)
    mask = (row < count)[:, None] & inside[None, :]
    if PARTS > 1:
        tl.store(sums + tl.program_id(2) * rows * outputs + at, product, mask=mask)
    else:
        if ROWS > _EARLY_ROWS:
            before, added, c = _before(residual + at, bias, score, column, row, count, inside)
        update = tl.exp(c)[:, None] * (product + added.to(tl.float32)[None, :])
        tl.store(residual + at, (before.to(tl.float32) + update).to(residual.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _project_heads(
    x, weight, bias, gain, shift, eps, queries, keys, values, recent_keys, recent_values, cumulative, slots, score,
    cosines, sines, live, rows, head_stride,
    K: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, SCORED: tl.constexpr,
    FIRST: tl.constexpr, BLOCKS: tl.constexpr, TOGETHER: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
    DEPTH: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program computes TOGETHER whole heads, or a block of the channels of one."""
    group = tl.program_id(0) // BLOCKS
    part = group // (HEADS // TOGETHER)  # 0 queries, 1 keys, 2 values
    first, begin = group % (HEADS // TOGETHER) * TOGETHER, tl.program_id(0) % BLOCKS * HALF
    COLUMNS: tl.constexpr = TOGETHER * 2 * HALF  # channels and partners by turns: a thread has two adjacent columns
    column = column_of(tl.arange(0, COLUMNS), part * HEADS + first, begin, HALF, WIDTH)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    parameters = _read_weights(weight, gain, shift, part * HEADS + first, begin, HALF, WIDTH, 0, ROWS, COLUMNS, K, K,
                               DEPTH, SPLITS)  # fmt: skip
    r, i = row[:, None, None], (begin + tl.arange(0, HALF))[None, None, :]
    inside = i < WIDTH // 2
    _wait_if(FIRST)
    if ROWS <= _EARLY_ROWS:
        count, added = tl.load(live), channels_of(bias, column, column >= 0)
        c, slot, cos, sin = _facts(score, slots, cosines, sines, r, i, r < rows, inside & (part < 2), WIDTH)
    _wait_if(not FIRST)
    if _dead(live, ROWS):
        return
    product = _product(x, weight, parameters, eps, row, rows, part * HEADS + first, begin, HALF, WIDTH, 0,
                       ROWS, COLUMNS, K, K, DEPTH, SPLITS, PRECISION)  # fmt: skip
    if ROWS > _EARLY_ROWS:
        count, added = tl.load(live), channels_of(bias, column, column >= 0)
        c, slot, cos, sin = _facts(score, slots, cosines, sines, r, i, r < count, inside & (part < 2), WIDTH)
    a1, a2 = tl.split(tl.reshape(product + added.to(tl.float32)[None, :], [ROWS, TOGETHER, HALF, 2]))
    head = (first + tl.arange(0, TOGETHER))[None, :, None]
    present = r < count
    mask = present & inside
    y1, y2 = a1, a2
    if part < 2:
        y1, y2 = a1 * cos - a2 * sin, a2 * cos + a1 * sin
    last = i == WIDTH // 2 - 1
    packed = (r * HEADS + head) * WIDTH + i
    if part == 0:
        if SCORED:
            y2 = tl.where(last, 1.0, y2)
        _store(queries + packed, WIDTH // 2, y1, y2, mask)
    else:
        once = present & (tl.program_id(0) == HEADS // TOGETHER * BLOCKS)
        _store_cached(keys, values, recent_keys, recent_values, cumulative, head * head_stride.to(tl.int64), slot,
                      packed, i, y1, y2, c, part, last, mask, once, SCORED, WIDTH, PAGE)  # fmt: skip


@triton.jit
def _store_cached(
    keys, values, recent_keys, recent_values, cumulative, head, slot, packed, i, y1, y2, c, part, last, mask, once,
    SCORED: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Store keys or values in the cache and in `recent`; scores too where `once`, if the cache has them."""
    into, recent = keys, recent_keys
    if part == 2:
        into, recent = values, recent_values
    into += head
    if cumulative is None:
        y1, y2 = _scored(y1, y2, c, part, last, SCORED)
        _store(into + slot * WIDTH + i, WIDTH // 2, y1, y2, mask)
    else:
        tl.store(cumulative + slot, c, mask=once)
        y1, y2 = _store_eight_bits(into, slot, i, y1, y2, part, last, mask, SCORED, WIDTH, PAGE)
        y1, y2 = _scored(y1, y2, c, part, last, SCORED)
    if recent_keys is not None:
        _store(recent + packed, WIDTH // 2, y1, y2, mask)


@triton.jit
def _facts(score, slots, cosines, sines, row, i, present, rotated, WIDTH: tl.constexpr):
    """Return the scores, slots, cosines and sines of rows, for the rotated channels of `i`."""
    at, mask = row * (WIDTH // 2) + i, present & rotated
    c, slot = tl.load(score + row, mask=present, other=0.0), tl.load(slots + row, mask=present, other=0).to(tl.int64)
    return c, slot, tl.load(cosines + at, mask=mask, other=0.0), tl.load(sines + at, mask=mask, other=0.0)


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
    """Store keys or values in 8 bits, as `SegmentPages` says, and return what was stored; 0 for NaN."""
    y1, y2 = tl.where(tl.abs(y1) >= 0, y1, 0.0), tl.where(tl.abs(y2) >= 0, y2, 0.0)
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
