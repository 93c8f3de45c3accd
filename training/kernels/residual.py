"""The attenuated residual update and the LayerNorm that follows it (SPEC.md, "Attenuated block").

x' = x + P · (update + bias), h = LN(x'), in one kernel each way. Letters: M streams of the batch, D model width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.training.kernels.operators import operator, or_other, programs, warps, wrap_triton

_WARPS, _BACKWARD_WARPS = 4, 2
_MOST_PROGRAMS = 1056
"""Eight per multiprocessor of an H100."""


def update_and_norm(
    x: Tensor, update: Tensor, bias: Tensor | None, score: Tensor | None, weight: Tensor, norm_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the streams x (…,D) after adding `update` (…,D) plus `bias` (D), and their LayerNorm.

    The update is multiplied by exp of the cumulative `score` (…) float32; None: by 1. Sums are float32. The streams and
    their gradient have x's dtype; the norm has the update's.
    """
    flat = [each.reshape(-1, x.shape[-1]) for each in (x, update)]
    rows = None if score is None else score.flatten()
    residual, normed = _update_and_norm(*flat, bias, rows, weight, norm_bias, eps)
    return residual.view(x.shape), normed.view(x.shape)


def _empty_streams(x: Tensor, update: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(update)


@operator("update_and_norm", _empty_streams)
def _update_and_norm(
    x: Tensor, update: Tensor, bias: Tensor | None, score: Tensor | None, weight: Tensor, norm_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (rows, width), residual, normed = x.shape, torch.empty_like(x), torch.empty_like(update)
    wrap_triton(_residual_kernel)[(rows,)](
        x=x, update=update, bias=or_other(bias, x), scores=or_other(score, x), weight=weight,
        norm_bias=or_other(norm_bias, x), residual=residual, normed=normed, EPS=eps, WIDTH=width,
        WIDTH_2=triton.next_power_of_2(width), HAS_BIAS=bias is not None, SCORED=score is not None,
        HAS_NORM_BIAS=norm_bias is not None, num_warps=warps(width, _WARPS),
    )  # fmt: skip
    return residual, normed


def _empty_gradients(
    _dresidual: Tensor,
    dnormed: Tensor,
    residual: Tensor,
    _update: Tensor | None,
    _bias: Tensor | None,
    score: Tensor | None,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = residual.shape
    partial = torch.empty((3, width), dtype=torch.float32, device=residual.device)
    dscore = partial.new_empty(0 if score is None else rows)
    return torch.empty_like(residual), torch.empty_like(dnormed), dscore, partial


@operator("update_and_norm_backward", _empty_gradients)
def _update_and_norm_backward(
    dresidual: Tensor, dnormed: Tensor, residual: Tensor, update: Tensor | None, bias: Tensor | None,
    score: Tensor | None, weight: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x (M,D), of the update (M,D), of the score (M,), and of weight, norm bias and bias (3,D).

    The update is read, and the score has a gradient, only if there is a score.
    """
    (rows, width), shared = residual.shape, programs(residual.shape[0], 1, _MOST_PROGRAMS)
    dx, dupdate = torch.empty_like(residual), torch.empty_like(dnormed)
    partial = torch.empty((shared, 3, width), dtype=torch.float32, device=residual.device)
    dscore = partial.new_empty(0 if score is None else rows)
    wrap_triton(_residual_backward_kernel)[(shared,)](
        dresidual=dresidual, dnormed=dnormed, residual=residual, update=or_other(update, residual),
        bias=or_other(bias, residual), scores=or_other(score, residual), weight=weight, dx=dx, dupdate=dupdate,
        dscores=dscore, partial=partial, rows=rows, EPS=eps, WIDTH=width, WIDTH_2=triton.next_power_of_2(width),
        HAS_BIAS=bias is not None, SCORED=score is not None, num_warps=warps(width, _BACKWARD_WARPS),
    )  # fmt: skip
    return dx, dupdate, dscore, partial.sum(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    _, update, bias, score, weight, norm_bias, ctx.eps = inputs
    ctx.has_norm_bias = norm_bias is not None
    ctx.save_for_backward(output[0], None if score is None else update, bias, score, weight)


def _differentiate(ctx: Any, dresidual: Tensor, dnormed: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    residual, update, bias, score, weight = ctx.saved_tensors
    gradients = dresidual.contiguous(), dnormed.contiguous()
    dx, dupdate, dscore, sums = _update_and_norm_backward(*gradients, residual, update, bias, score, weight, ctx.eps)
    return (
        dx, dupdate, None if bias is None else sums[2], None if score is None else dscore, sums[0],
        sums[1] if ctx.has_norm_bias else None, None,
    )  # fmt: skip


_update_and_norm.register_autograd(_differentiate, setup_context=_keep)


@triton.jit
def standardised(y, inside, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """Return the rows scaled to mean 0 and variance 1, and the reciprocal of their standard deviation."""
    centred = tl.where(inside, y - tl.sum(y, 1)[:, None] / WIDTH, 0.0)
    reciprocal = tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / WIDTH + EPS)
    return centred * reciprocal, reciprocal


@triton.jit
def norm_gradient(dh, centred, reciprocal, inside, WIDTH: tl.constexpr):
    """Return the gradient of rows, given that of their standardised form."""
    along, mean = tl.sum(dh * centred, 1)[:, None] / WIDTH, tl.sum(dh, 1)[:, None] / WIDTH
    return tl.where(inside, (dh - mean - centred * along) * reciprocal, 0.0)


@triton.jit
def attenuated_gradient(dy, update, bias, scores, dupdate, dscores, row, at, d, own, HAS_BIAS: tl.constexpr):
    """Store the gradients of a row's update and score, given that of the updated row; return the update's gradient."""
    dy *= tl.exp(tl.load(scores + row))
    u = tl.load(update + at, mask=own, other=0.0).to(tl.float32)
    if HAS_BIAS:
        u += tl.load(bias + d, mask=own, other=0.0).to(tl.float32)
    tl.store(dupdate + at, dy.to(dupdate.dtype.element_ty), mask=own)
    tl.store(dscores + row, tl.sum(tl.sum(u * dy, 1), 0))
    return dy


@triton.jit
def updated(
    x, update, bias, scores, weight, norm_bias, residual, row, d, own,
    EPS: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, SCORED: tl.constexpr, HAS_NORM_BIAS: tl.constexpr,
):  # fmt: skip
    """Store a row of x' and return the norm of the stored values, in float32."""
    at = row * WIDTH + d
    y = tl.load(update + at, mask=own, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias + d, mask=own, other=0.0).to(tl.float32)
    if SCORED:
        y *= tl.exp(tl.load(scores + row))
    y += tl.load(x + at, mask=own, other=0.0).to(tl.float32)
    kept = y.to(residual.dtype.element_ty)
    tl.store(residual + at, kept, mask=own)
    h, _ = standardised(kept.to(tl.float32), own, WIDTH, EPS)
    h *= tl.load(weight + d, mask=own, other=0.0).to(tl.float32)
    if HAS_NORM_BIAS:
        h += tl.load(norm_bias + d, mask=own, other=0.0).to(tl.float32)
    return h


@triton.jit
def _residual_kernel(
    x, update, bias, scores, weight, norm_bias, residual, normed,
    EPS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_2: tl.constexpr, HAS_BIAS: tl.constexpr, SCORED: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH_2)[None, :]
    own = d < WIDTH
    h = updated(
        x, update, bias, scores, weight, norm_bias, residual, row, d, own, EPS, WIDTH, HAS_BIAS, SCORED, HAS_NORM_BIAS
    )
    tl.store(normed + row * WIDTH + d, h.to(normed.dtype.element_ty), mask=own)


@triton.jit
def _residual_backward_kernel(
    dresidual, dnormed, residual, update, bias, scores, weight, dx, dupdate, dscores, partial, rows,
    EPS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_2: tl.constexpr, HAS_BIAS: tl.constexpr, SCORED: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, WIDTH_2)[None, :]
    own = d < WIDTH
    scale = tl.load(weight + d, mask=own, other=0.0).to(tl.float32)
    sum_weight = tl.zeros([1, WIDTH_2], tl.float32)
    sum_norm_bias = tl.zeros([1, WIDTH_2], tl.float32)
    sum_bias = tl.zeros([1, WIDTH_2], tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * WIDTH + d
        y = tl.load(residual + at, mask=own, other=0.0).to(tl.float32)
        dh = tl.load(dnormed + at, mask=own, other=0.0).to(tl.float32)
        dy = tl.load(dresidual + at, mask=own, other=0.0).to(tl.float32)
        centred, reciprocal = standardised(y, own, WIDTH, EPS)
        sum_weight += dh * centred
        sum_norm_bias += dh
        dy += norm_gradient(dh * scale, centred, reciprocal, own, WIDTH)
        tl.store(dx + at, dy.to(dx.dtype.element_ty), mask=own)
        if SCORED:
            dy = attenuated_gradient(dy, update, bias, scores, dupdate, dscores, row, at, d, own, HAS_BIAS)
        else:
            tl.store(dupdate + at, dy.to(dupdate.dtype.element_ty), mask=own)
        sum_bias += dy
    out = partial + tl.program_id(0) * (3 * WIDTH) + d
    tl.store(out, sum_weight, mask=own)
    tl.store(out + WIDTH, sum_norm_bias, mask=own)
    tl.store(out + 2 * WIDTH, sum_bias, mask=own)
