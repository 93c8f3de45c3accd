"""LayerNorm and linear layers over live streams, each with what follows it fused in.

Letters: M rows that there may be, D model width, K inputs, O outputs, N heads, H head width.
"""

import triton
import triton.language as tl
from torch import Tensor, nn

from engine.kernels.tiles import Tiles, precision


def normalise(x: Tensor, norm: nn.LayerNorm, out: Tensor, live: Tensor) -> None:
    """Out = LN(x), for the first `live` (1,) rows of x (M,D)."""
    _normalise[(x.shape[0],)](x, norm.weight, norm.bias, out, live, norm.eps, x.shape[1],
                              WIDTH=triton.next_power_of_2(x.shape[1]))  # fmt: skip


def gelu_linear(x: Tensor, layer: nn.Linear, out: Tensor, live: Tensor, *, tanh: bool) -> None:
    """Out = GELU(W · x + b) for the first `live` (1,) rows of x (M,K); out (M,O). `tanh`: which GELU."""
    tiles = Tiles.of(x, out.shape[1])
    grid = (triton.cdiv(out.shape[1], tiles.columns), triton.cdiv(x.shape[0], tiles.rows))
    _gelu_linear[grid](
        x, layer.weight, layer.bias, out, live, out.shape[1],
        K=x.shape[1], TANH=tanh, ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth,
        PRECISION=precision(x), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def residual_linear(x: Tensor, layer: nn.Linear, stream: Tensor, score: Tensor, live: Tensor) -> None:
    """Add exp(score) · (W · x + b) to `stream` (M,O), for the first `live` (1,) rows of x (M,K) and score (M,)."""
    tiles = Tiles.of(x, stream.shape[1])
    grid = (triton.cdiv(stream.shape[1], tiles.columns), triton.cdiv(x.shape[0], tiles.rows))
    _residual_linear[grid](
        x, layer.weight, layer.bias, stream, score, live, stream.shape[1],
        K=x.shape[1], ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth,
        PRECISION=precision(x), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def project_heads(
    x: Tensor,
    layer: nn.Linear,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    score: Tensor,
    angles: tuple[Tensor, Tensor],
    live: Tensor,
    *,
    scored: bool,
) -> None:
    """Queries, keys and values of the first `live` (1,) rows of x (M,D), ready for attention.

    SPEC.md, "Attenuated block".
    They are rotated by `angles` (M,H/2), cosines and sines; where `scored` the last channel becomes 1 and `score` (M,),
    and values are weighted by exp(score). Queries (M,N,H) are for this step; keys and values go into a layer of the
    cache (N,slots,H) at each row's slot (M,).
    """
    tiles = Tiles.of(x, 3 * x.shape[1])
    heads, width = queries.shape[1:]
    half = min(max(16, triton.next_power_of_2(width // 2)), max(16, tiles.columns // 2))
    blocks = triton.cdiv(width // 2, half)
    grid = (3 * heads * blocks, triton.cdiv(x.shape[0], tiles.rows))
    _project_heads[grid](
        x, layer.weight, layer.bias, queries, keys, values, slots, score, *angles, live,
        keys.stride(0), K=x.shape[1], HEADS=heads, WIDTH=width, SCORED=scored, BLOCKS=blocks,
        ROWS=tiles.rows, HALF=half, DEPTH=tiles.depth, PRECISION=precision(x),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@triton.jit
def _normalise(x, weight, bias, out, live, eps, width, WIDTH: tl.constexpr):
    row, d = tl.program_id(0), tl.arange(0, WIDTH)
    if row >= tl.load(live):
        return
    there = d < width
    own = tl.load(x + row * width + d, mask=there, other=0.0).to(tl.float32)
    centred = tl.where(there, own - tl.sum(own) / width, 0.0)
    y = centred / tl.sqrt(tl.sum(centred * centred) / width + eps)
    y *= tl.load(weight + d, mask=there, other=0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + d, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * width + d, y.to(out.dtype.element_ty), mask=there)


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


@triton.jit
def _gelu_linear(
    x, weight, bias, out, live, outputs,
    K: tl.constexpr, TANH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    streams = tl.load(live)
    if tl.program_id(1) * ROWS >= streams:
        return
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    present, there = row < streams, column < outputs
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        w = tl.load(weight + column[:, None] * K + k[None, :], mask=there[:, None] & (k < K)[None, :], other=0.0)
        a = tl.load(x + row[:, None] * K + k[None, :], mask=present[:, None] & (k < K)[None, :], other=0.0)
        accumulator = tl.dot(a, tl.trans(w), accumulator, input_precision=PRECISION)
    y = _gelu(_bias(accumulator, bias, column, there), TANH)
    tl.store(out + row[:, None] * outputs + column[None, :], y.to(out.dtype.element_ty),
             mask=present[:, None] & there[None, :])  # fmt: skip


@triton.jit
def _residual_linear(
    x, weight, bias, stream, score, live, outputs,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    streams = tl.load(live)
    if tl.program_id(1) * ROWS >= streams:
        return
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    present, there = row < streams, column < outputs
    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        w = tl.load(weight + column[:, None] * K + k[None, :], mask=there[:, None] & (k < K)[None, :], other=0.0)
        a = tl.load(x + row[:, None] * K + k[None, :], mask=present[:, None] & (k < K)[None, :], other=0.0)
        accumulator = tl.dot(a, tl.trans(w), accumulator, input_precision=PRECISION)
    update = tl.exp(tl.load(score + row, mask=present, other=0.0))[:, None] * _bias(accumulator, bias, column, there)
    at = stream + row[:, None] * outputs + column[None, :]
    both = present[:, None] & there[None, :]
    before = tl.load(at, mask=both, other=0.0).to(tl.float32)
    tl.store(at, (before + update).to(stream.dtype.element_ty), mask=both)


@triton.jit
def _project_heads(
    x, weight, bias, queries, keys, values, slots, score, cosines, sines, live, head_stride,
    K: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, SCORED: tl.constexpr, BLOCKS: tl.constexpr,
    ROWS: tl.constexpr, HALF: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    streams = tl.load(live)
    if tl.program_id(1) * ROWS >= streams:
        return
    part = tl.program_id(0) // (HEADS * BLOCKS)  # 0 queries, 1 keys, 2 values
    head = tl.program_id(0) // BLOCKS % HEADS
    i = tl.program_id(0) % BLOCKS * HALF + tl.arange(
        0, HALF
    )  # a channel of the head's first half; its partner is i + H/2
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    present, there = row < streams, i < WIDTH // 2
    first = (part * HEADS + head) * WIDTH + i
    second = first + WIDTH // 2
    a1 = tl.zeros([ROWS, HALF], tl.float32)
    a2 = tl.zeros([ROWS, HALF], tl.float32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        w1 = tl.load(weight + first[:, None] * K + k[None, :], mask=there[:, None] & (k < K)[None, :], other=0.0)
        w2 = tl.load(weight + second[:, None] * K + k[None, :], mask=there[:, None] & (k < K)[None, :], other=0.0)
        a = tl.load(x + row[:, None] * K + k[None, :], mask=present[:, None] & (k < K)[None, :], other=0.0)
        a1 = tl.dot(a, tl.trans(w1), a1, input_precision=PRECISION)
        a2 = tl.dot(a, tl.trans(w2), a2, input_precision=PRECISION)
    a1, a2 = _bias(a1, bias, first, there), _bias(a2, bias, second, there)
    both = present[:, None] & there[None, :]
    c = tl.load(score + row, mask=present, other=0.0)[:, None]
    if part == 2:
        y1, y2 = a1, a2
        if SCORED:
            y1, y2 = a1 * tl.exp(c), a2 * tl.exp(c)
    else:
        cos = tl.load(cosines + row[:, None] * (WIDTH // 2) + i[None, :], mask=both, other=0.0)
        sin = tl.load(sines + row[:, None] * (WIDTH // 2) + i[None, :], mask=both, other=0.0)
        y1, y2 = a1 * cos - a2 * sin, a2 * cos + a1 * sin
        if SCORED:
            y2 = tl.where((i == WIDTH // 2 - 1)[None, :], tl.where(part == 0, 1.0, c), y2)
    slot = tl.load(slots + row, mask=present, other=0).to(tl.int64)
    if part == 0:
        at = queries + (row[:, None] * HEADS + head) * WIDTH + i[None, :]
    elif part == 1:
        at = keys + head * head_stride + slot[:, None] * WIDTH + i[None, :]
    else:
        at = values + head * head_stride + slot[:, None] * WIDTH + i[None, :]
    tl.store(at, y1.to(queries.dtype.element_ty), mask=both)
    tl.store(at + WIDTH // 2, y2.to(queries.dtype.element_ty), mask=both)
