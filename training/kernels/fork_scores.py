"""The residual update before a fork and the fork's two logits (SPEC.md, "Fork", step 1), in one kernel each way.

x' = x + P · (update + bias), logits = W_f · LN_f(x') in float32. Letters: M streams of the whole batch, D model width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.training.kernels.operators import operator, or_other, programs, warps, wrap_triton
from thoughtbubbles.training.kernels.residual import attenuated_gradient, norm_gradient, standardised, updated

_WARPS, _BACKWARD_WARPS = 2, 4
_MOST_PROGRAMS = 660
"""Five per multiprocessor of an H100."""


def update_and_score(
    x: Tensor, update: Tensor, bias: Tensor | None, score: Tensor | None, weight: Tensor, norm_bias: Tensor | None,
    projection: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the streams (…,D) after `update`, as in `update_and_norm`, and their fork and keep logits (…,2).

    `weight` and `norm_bias` (D) belong to the fork's norm; `projection` (2,D) is W_f.
    """
    flat = [each.reshape(-1, x.shape[-1]) for each in (x, update)]
    rows = None if score is None else score.flatten()
    residual, logits = _update_and_score(*flat, bias, rows, weight, norm_bias, projection, eps)
    return residual.view(x.shape), logits.view(*x.shape[:-1], 2)


def _empty_streams(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty((x.shape[0], 2), dtype=torch.float32, device=x.device)


@operator("update_and_score", _empty_streams)
def _update_and_score(
    x: Tensor, update: Tensor, bias: Tensor | None, score: Tensor | None, weight: Tensor, norm_bias: Tensor | None,
    projection: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (rows, width), residual = x.shape, torch.empty_like(x)
    logits = torch.empty((rows, 2), dtype=torch.float32, device=x.device)
    wrap_triton(_fork_scores_kernel)[(rows,)](
        x=x, update=update, bias=or_other(bias, x), scores=or_other(score, x), weight=weight,
        norm_bias=or_other(norm_bias, x), projection=projection, residual=residual, logits=logits, EPS=eps,
        WIDTH=width, WIDTH_2=triton.next_power_of_2(width), HAS_BIAS=bias is not None, SCORED=score is not None,
        HAS_NORM_BIAS=norm_bias is not None, num_warps=warps(width, _WARPS),
    )  # fmt: skip
    return residual, logits


def _empty_gradients(
    _dresidual: Tensor, _dlogits: Tensor, residual: Tensor, update: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = residual.shape
    partial = torch.empty((5, width), dtype=torch.float32, device=residual.device)
    return torch.empty_like(residual), torch.empty_like(update), partial.new_empty(rows), partial


@operator("update_and_score_backward", _empty_gradients)
def _update_and_score_backward(
    dresidual: Tensor, dlogits: Tensor, residual: Tensor, update: Tensor, bias: Tensor | None, score: Tensor | None,
    weight: Tensor, norm_bias: Tensor | None, projection: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x (M,D), update and score (M,), and (5,D) of weight, norm bias, bias and projection."""
    (rows, width), shared = residual.shape, programs(residual.shape[0], 1, _MOST_PROGRAMS)
    dx, dupdate = torch.empty_like(residual), torch.empty_like(update)
    partial = torch.empty((shared, 5, width), dtype=torch.float32, device=residual.device)
    dscore = partial.new_empty(rows)
    wrap_triton(_fork_scores_backward_kernel)[(shared,)](
        dresidual=dresidual, dlogits=dlogits, residual=residual, update=update, bias=or_other(bias, residual),
        scores=or_other(score, residual), weight=weight, norm_bias=or_other(norm_bias, weight), projection=projection,
        dx=dx, dupdate=dupdate, dscores=dscore, partial=partial, rows=rows, EPS=eps, WIDTH=width,
        WIDTH_2=triton.next_power_of_2(width), HAS_BIAS=bias is not None, SCORED=score is not None,
        HAS_NORM_BIAS=norm_bias is not None, num_warps=warps(width, _BACKWARD_WARPS),
    )  # fmt: skip
    return dx, dupdate, dscore, partial.sum(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    _, update, bias, score, weight, norm_bias, projection, ctx.eps = inputs
    ctx.save_for_backward(output[0], update, bias, score, weight, norm_bias, projection)


def _differentiate(ctx: Any, dresidual: Tensor, dlogits: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    residual, update, bias, score, weight, norm_bias, projection = ctx.saved_tensors
    gradients = dresidual.contiguous(), dlogits.contiguous()
    dx, dupdate, dscore, sums = _update_and_score_backward(
        *gradients, residual, update, bias, score, weight, norm_bias, projection, ctx.eps
    )
    return (
        dx, dupdate, None if bias is None else sums[2], None if score is None else dscore, sums[0],
        None if norm_bias is None else sums[1], sums[3:], None,
    )  # fmt: skip


_update_and_score.register_autograd(_differentiate, setup_context=_keep)


@triton.jit
def _fork_scores_kernel(
    x, update, bias, scores, weight, norm_bias, projection, residual, logits,
    EPS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_2: tl.constexpr, HAS_BIAS: tl.constexpr, SCORED: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
):  # fmt: skip
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH_2)[None, :]
    own = d < WIDTH
    h = updated(
        x, update, bias, scores, weight, norm_bias, residual, row, d, own, EPS, WIDTH, HAS_BIAS, SCORED, HAS_NORM_BIAS
    )
    forking = tl.load(projection + d, mask=own, other=0.0).to(tl.float32)
    keeping = tl.load(projection + WIDTH + d, mask=own, other=0.0).to(tl.float32)
    tl.store(logits + 2 * row, tl.sum(tl.sum(h * forking, 1), 0))
    tl.store(logits + 2 * row + 1, tl.sum(tl.sum(h * keeping, 1), 0))


@triton.jit
def _fork_scores_backward_kernel(
    dresidual, dlogits, residual, update, bias, scores, weight, norm_bias, projection, dx, dupdate, dscores, partial,
    rows,
    EPS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_2: tl.constexpr, HAS_BIAS: tl.constexpr, SCORED: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, WIDTH_2)[None, :]
    own = d < WIDTH
    scale = tl.load(weight + d, mask=own, other=0.0).to(tl.float32)
    forking = tl.load(projection + d, mask=own, other=0.0).to(tl.float32)
    keeping = tl.load(projection + WIDTH + d, mask=own, other=0.0).to(tl.float32)
    forked = tl.zeros([1, WIDTH_2], tl.float32)  # sum over rows of the standardised stream times the logit's gradient
    kept = tl.zeros([1, WIDTH_2], tl.float32)
    sum_bias = tl.zeros([1, WIDTH_2], tl.float32)
    sum_fork, sum_keep = 0.0, 0.0
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * WIDTH + d
        centred, reciprocal = standardised(tl.load(residual + at, mask=own, other=0.0).to(tl.float32), own, WIDTH, EPS)
        by_fork, by_keep = tl.load(dlogits + 2 * row), tl.load(dlogits + 2 * row + 1)
        forked += by_fork * centred
        kept += by_keep * centred
        sum_fork += by_fork
        sum_keep += by_keep
        dy = tl.load(dresidual + at, mask=own, other=0.0).to(tl.float32)
        dy += norm_gradient((by_fork * forking + by_keep * keeping) * scale, centred, reciprocal, own, WIDTH)
        tl.store(dx + at, dy.to(dx.dtype.element_ty), mask=own)
        if SCORED:
            dy = attenuated_gradient(dy, update, bias, scores, dupdate, dscores, row, at, d, own, HAS_BIAS)
        else:
            tl.store(dupdate + at, dy.to(dupdate.dtype.element_ty), mask=own)
        sum_bias += dy
    # h = centred · scale + norm bias, so the sums of dh · centred, of dh and of dlogit · h follow from those above
    out, constant = partial + tl.program_id(0) * (5 * WIDTH) + d, tl.zeros([1, WIDTH_2], tl.float32)
    if HAS_NORM_BIAS:
        constant += tl.load(norm_bias + d, mask=own, other=0.0).to(tl.float32)
    tl.store(out, forked * forking + kept * keeping, mask=own)
    tl.store(out + WIDTH, sum_fork * forking + sum_keep * keeping, mask=own)
    tl.store(out + 2 * WIDTH, sum_bias, mask=own)
    tl.store(out + 3 * WIDTH, forked * scale + sum_fork * constant, mask=own)
    tl.store(out + 4 * WIDTH, kept * scale + sum_keep * constant, mask=own)
