"""GELU of the MLP with its bias, in one kernel each way; the backward kernel also sums the bias' gradient.

Letters: M streams of the whole batch, F = 4D hidden width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.training.kernels.operators import operator, or_other, programs, wrap_triton

_ROWS = 2
_COLUMNS, _BACKWARD_COLUMNS = 1024, 512
_WARPS = 4
_MOST_PROGRAMS = 176
"""Per strip of columns; with six strips, as in the 124M shape, that is eight per multiprocessor of an H100."""


def biased_gelu(x: Tensor, bias: Tensor | None, *, tanh: bool) -> Tensor:
    """Return GELU of x (…,F) plus `bias` (F); `tanh` chooses `gelu_tanh` of `ModelConfig.activation`."""
    y: Tensor = _gelu(x.reshape(-1, x.shape[-1]), bias, tanh)
    return y.view(x.shape)


def _empty(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


@operator("gelu", _empty)
def _gelu(x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    (rows, width), y = x.shape, torch.empty_like(x)
    wrap_triton(_gelu_kernel)[(triton.cdiv(rows, _ROWS), triton.cdiv(width, _COLUMNS))](
        x=x, bias=or_other(bias, x), y=y, rows=rows, WIDTH=width, ROWS=_ROWS, COLUMNS=_COLUMNS,
        HAS_BIAS=bias is not None, TANH=tanh, num_warps=_WARPS,
    )  # fmt: skip
    return y


def _empty_gradients(_dy: Tensor, x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty(x.shape[1], dtype=torch.float32, device=x.device)


@operator("gelu_backward", _empty_gradients)
def _gelu_backward(dy: Tensor, x: Tensor, bias: Tensor | None, tanh: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (M,F) and of the bias (F)."""
    (rows, width), dx = x.shape, torch.empty_like(x)
    shared = programs(rows, _ROWS, _MOST_PROGRAMS)
    partial = torch.empty((shared, width), dtype=torch.float32, device=x.device)
    wrap_triton(_gelu_backward_kernel)[(shared, triton.cdiv(width, _BACKWARD_COLUMNS))](
        dy=dy, x=x, bias=or_other(bias, x), dx=dx, partial=partial, rows=rows, WIDTH=width, ROWS=_ROWS,
        COLUMNS=_BACKWARD_COLUMNS, HAS_BIAS=bias is not None, TANH=tanh, num_warps=_WARPS,
    )  # fmt: skip
    return dx, partial.sum(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG001
    x, bias, ctx.tanh = inputs
    ctx.save_for_backward(x, bias)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    x, bias = ctx.saved_tensors
    dx, dbias = _gelu_backward(dy.contiguous(), x, bias, ctx.tanh)
    return dx, None if bias is None else dbias, None


_gelu.register_autograd(_differentiate, setup_context=_keep)


@triton.jit
def _distribution(x):
    """Return the normal distribution function and its density at x.

    The error function is Abramowitz and Stegun's 7.1.26, with an error of 1.5e-7, enough for float32. It shares its
    exponential with the density; the library's erf would compute two polynomials besides.
    """
    z = tl.abs(x) * 0.7071067811865476
    bell = tl.exp(-z * z)
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * bell
    return tl.where(x < 0, tail, 1.0 - tail), 0.3989422804014327 * bell


@triton.jit
def _gelu_kernel(
    x, bias, y, rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside, at = (row < rows) & (column < WIDTH), row.to(tl.int64) * WIDTH + column
    own = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        own += tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    if TANH:
        cdf = tl.sigmoid(1.5957691216057308 * (own + 0.044715 * own * own * own))
    else:
        cdf, _ = _distribution(own)
    tl.store(y + at, (own * cdf).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward_kernel(
    dy, x, bias, dx, partial, rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    known = column < WIDTH
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS))[:, None]
        inside, at = (row < rows) & known, row.to(tl.int64) * WIDTH + column
        own = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            own += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
        if TANH:
            cdf = tl.sigmoid(1.5957691216057308 * (own + 0.044715 * own * own * own))
            slope = cdf * (1.0 - cdf) * (1.5957691216057308 + 0.2140644488 * own * own)
        else:
            cdf, slope = _distribution(own)
        gradient *= cdf + own * slope
        tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)
        sums += gradient
    out = partial + tl.program_id(0) * WIDTH + column
    tl.store(out, tl.sum(sums, 0)[None, :], mask=known)
