"""From the query-key-value projection to the inputs of attention (SPEC.md, "Attenuated block" and "Positions").

Bias, rotation, score channel and value attenuation in one kernel each way, in the layout of flash attention.
Letters: B batch, S streams, N heads, H head width, D = N·H, M = B·S.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.training.kernels.operators import operator, or_other, programs, warps, wrap_triton

_ROWS = 2
_WARPS, _BACKWARD_WARPS = 4, 2
_MOST_PROGRAMS = 1056
"""Eight per multiprocessor of an H100, which all run at the same time. Each program sums the bias' gradient over its
share of the rows; further programs would start only when others end.
"""


def attention_heads(
    qkv: Tensor, bias: Tensor | None, cos: Tensor, sin: Tensor, score: Tensor, *, heads: int, biased: bool,
    attenuated: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return queries, keys and values (B,N,S,H) from the projection `qkv` (B,S,3D) and its `bias` (3D), not yet added.

    Queries and keys are rotated by `cos` and `sin` (B,1,S,H/2). If `biased`, the last channel of queries is 1 and that
    of keys the cumulative score (B,S) float32; if `attenuated`, values are multiplied by exp(score).
    """
    batch, streams, width = qkv.shape
    flat = [each.reshape(batch * streams, -1) for each in (qkv, cos, sin)]
    q, k, v = _heads(flat[0], bias, flat[1], flat[2], score.flatten(), heads, biased, attenuated)
    shape = (batch, streams, heads, width // 3 // heads)
    return tuple(each.view(shape).transpose(1, 2) for each in (q, k, v))


def _empty_heads(qkv: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    shape = (qkv.shape[0], qkv.shape[1] // 3)
    return qkv.new_empty(shape), qkv.new_empty(shape), qkv.new_empty(shape)


@operator("heads", _empty_heads)
def _heads(
    qkv: Tensor, bias: Tensor | None, cos: Tensor, sin: Tensor, score: Tensor, heads: int, biased: bool,
    attenuated: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows, width = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = qkv.new_empty((rows, width)), qkv.new_empty((rows, width)), qkv.new_empty((rows, width))
    half = width // heads // 2
    wrap_triton(_heads_kernel)[(triton.cdiv(rows, _ROWS),)](
        qkv=qkv, bias=or_other(bias, qkv), cosines=cos, sines=sin, scores=score, queries=q, keys=k, values=v, rows=rows,
        HEADS=heads, HALF=half, HEADS_2=triton.next_power_of_2(heads), HALF_2=triton.next_power_of_2(half), ROWS=_ROWS,
        HAS_BIAS=bias is not None, BIASED=biased, ATTENUATED=attenuated, num_warps=warps(width, _WARPS),
    )  # fmt: skip
    return q, k, v


def _empty_gradients(
    dq: Tensor, _dk: Tensor, _dv: Tensor, _v: Tensor, _cos: Tensor, _sin: Tensor, score: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = dq.shape
    return dq.new_empty((rows, 3 * width)), torch.empty_like(score), score.new_empty(3 * width)


@operator("heads_backward", _empty_gradients)
def _heads_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, v: Tensor, cos: Tensor, sin: Tensor, score: Tensor, heads: int, biased: bool,
    attenuated: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of projection (M,3D), scores (M,) and bias (3D), from those of q, k, v (M,D)."""
    rows, width = dq.shape
    half, shared = width // heads // 2, programs(rows, 1, _MOST_PROGRAMS)
    dqkv, dscore = dq.new_empty((rows, 3 * width)), torch.empty_like(score)
    partial = score.new_empty((shared, 3 * width))
    wrap_triton(_heads_backward_kernel)[(shared,)](
        dqueries=dq, dkeys=dk, dvalues=dv, values=v, cosines=cos, sines=sin, scores=score, dqkv=dqkv, dscores=dscore,
        partial=partial, rows=rows, HEADS=heads, HALF=half, HEADS_2=triton.next_power_of_2(heads),
        HALF_2=triton.next_power_of_2(half), BIASED=biased, ATTENUATED=attenuated,
        num_warps=warps(width, _BACKWARD_WARPS),
    )  # fmt: skip
    return dqkv, dscore, partial.sum(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401
    _, bias, cos, sin, score, ctx.heads, ctx.biased, ctx.attenuated = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(output[2], cos, sin, score)


def _differentiate(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    gradients = [each.contiguous() for each in (dq, dk, dv)]
    dqkv, dscore, dbias = _heads_backward(*gradients, *ctx.saved_tensors, ctx.heads, ctx.biased, ctx.attenuated)
    return dqkv, dbias if ctx.has_bias else None, None, None, dscore, None, None, None


_heads.register_autograd(_differentiate, setup_context=_keep)


@triton.jit
def _heads_kernel(
    qkv, bias, cosines, sines, scores, queries, keys, values, rows,
    HEADS: tl.constexpr, HALF: tl.constexpr, HEADS_2: tl.constexpr, HALF_2: tl.constexpr, ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr, BIASED: tl.constexpr, ATTENUATED: tl.constexpr,
):  # fmt: skip
    width: tl.constexpr = 2 * HALF * HEADS
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    n, i = tl.arange(0, HEADS_2)[None, :, None], tl.arange(0, HALF_2)[None, None, :]
    inside = (row < rows) & (n < HEADS) & (i < HALF)
    known = (row < rows) & (i < HALF)
    at = n * (2 * HALF) + i
    source, target = row.to(tl.int64) * (3 * width) + at, row.to(tl.int64) * width + at
    cos = tl.load(cosines + row * HALF + i, mask=known, other=0.0)
    sin = tl.load(sines + row * HALF + i, mask=known, other=0.0)
    c = tl.load(scores + row, mask=row < rows, other=0.0)
    last = i == HALF - 1
    for part in tl.static_range(3):
        first = tl.load(qkv + source + part * width, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(qkv + source + part * width + HALF, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            own = (n < HEADS) & (i < HALF)
            first += tl.load(bias + part * width + at, mask=own, other=0.0).to(tl.float32)
            second += tl.load(bias + part * width + at + HALF, mask=own, other=0.0).to(tl.float32)
        if part < 2:
            y1, y2 = first * cos - second * sin, second * cos + first * sin
            if BIASED:
                y2 = tl.where(last, 1.0 if part == 0 else c, y2)
        else:
            y1, y2 = first, second
            if ATTENUATED:
                y1, y2 = first * tl.exp(c), second * tl.exp(c)
        out = queries if part == 0 else (keys if part == 1 else values)
        tl.store(out + target, y1.to(out.dtype.element_ty), mask=inside)
        tl.store(out + target + HALF, y2.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _heads_backward_kernel(
    dqueries, dkeys, dvalues, values, cosines, sines, scores, dqkv, dscores, partial, rows,
    HEADS: tl.constexpr, HALF: tl.constexpr, HEADS_2: tl.constexpr, HALF_2: tl.constexpr,
    BIASED: tl.constexpr, ATTENUATED: tl.constexpr,
):  # fmt: skip
    width: tl.constexpr = 2 * HALF * HEADS
    n, i = tl.arange(0, HEADS_2)[:, None], tl.arange(0, HALF_2)[None, :]
    inside, known = (n < HEADS) & (i < HALF), i < HALF
    at, last = n * (2 * HALF) + i, i == HALF - 1
    sum_q1 = tl.zeros([HEADS_2, HALF_2], tl.float32)
    sum_q2 = tl.zeros([HEADS_2, HALF_2], tl.float32)
    sum_k1 = tl.zeros([HEADS_2, HALF_2], tl.float32)
    sum_k2 = tl.zeros([HEADS_2, HALF_2], tl.float32)
    sum_v1 = tl.zeros([HEADS_2, HALF_2], tl.float32)
    sum_v2 = tl.zeros([HEADS_2, HALF_2], tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        source, target = tl.cast(row, tl.int64) * width + at, tl.cast(row, tl.int64) * (3 * width) + at
        cos = tl.load(cosines + row * HALF + i, mask=known, other=0.0)
        sin = tl.load(sines + row * HALF + i, mask=known, other=0.0)
        c = tl.load(scores + row)
        q1 = tl.load(dqueries + source, mask=inside, other=0.0).to(tl.float32)
        q2 = tl.load(dqueries + source + HALF, mask=inside, other=0.0).to(tl.float32)
        k1 = tl.load(dkeys + source, mask=inside, other=0.0).to(tl.float32)
        k2 = tl.load(dkeys + source + HALF, mask=inside, other=0.0).to(tl.float32)
        v1 = tl.load(dvalues + source, mask=inside, other=0.0).to(tl.float32)
        v2 = tl.load(dvalues + source + HALF, mask=inside, other=0.0).to(tl.float32)
        dc = tl.zeros([HEADS_2, HALF_2], tl.float32)
        if ATTENUATED:  # v = P · v', so dv/dc = v
            dc += v1 * tl.load(values + source, mask=inside, other=0.0).to(tl.float32)
            dc += v2 * tl.load(values + source + HALF, mask=inside, other=0.0).to(tl.float32)
            v1, v2 = v1 * tl.exp(c), v2 * tl.exp(c)
        if BIASED:  # the last channel does not come from the projection
            dc += tl.where(last, k2, 0.0)
            q2, k2 = tl.where(last, 0.0, q2), tl.where(last, 0.0, k2)
        tl.store(dscores + row, tl.sum(tl.sum(dc, 1), 0))
        q1, q2 = q1 * cos + q2 * sin, q2 * cos - q1 * sin
        k1, k2 = k1 * cos + k2 * sin, k2 * cos - k1 * sin
        tl.store(dqkv + target, q1.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dqkv + target + HALF, q2.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dqkv + target + width, k1.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dqkv + target + width + HALF, k2.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dqkv + target + 2 * width, v1.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dqkv + target + 2 * width + HALF, v2.to(dqkv.dtype.element_ty), mask=inside)
        sum_q1 += q1
        sum_q2 += q2
        sum_k1 += k1
        sum_k2 += k2
        sum_v1 += v1
        sum_v2 += v2
    own = partial + tl.program_id(0) * (3 * width) + at
    tl.store(own, sum_q1, mask=inside)
    tl.store(own + HALF, sum_q2, mask=inside)
    tl.store(own + width, sum_k1, mask=inside)
    tl.store(own + width + HALF, sum_k2, mask=inside)
    tl.store(own + 2 * width, sum_v1, mask=inside)
    tl.store(own + 2 * width + HALF, sum_v2, mask=inside)
