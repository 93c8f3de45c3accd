"""The head and its cross-entropy without a (rows,V) tensor in float32 (SPEC.md, "Forward pass", step 3).

Logits have the dtype of the matrix product. One kernel computes a row's loss and the gradient of its logits, so the
head's gradients are already known after the forward pass. Letters: R rows, D model width, V vocabulary.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.training.kernels.operators import operator, wrap_triton

_COLUMNS = 8192
_WARPS = 16


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int) -> Tensor:
    """Return the mean negative log-likelihood () float32 of `targets` (R,) under the logits x · weightᵀ.

    x is (R,D), `weight` (V,D). Rows whose target is `ignore_index` are not counted.
    """
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, targets, ignore_index)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:  # noqa: ANN401
        own = weight.to(x.dtype)
        scale = 1 / (targets != ignore_index).sum().float()
        losses, dlogits = _loss_and_gradient(x @ own.T, targets, scale, ignore_index)
        ctx.save_for_backward(dlogits @ own, dlogits.T @ x)
        ctx.weight_type = weight.dtype
        loss: Tensor = losses.sum() * scale
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        dx, dweight = ctx.saved_tensors
        return (gradient * dx).to(dx.dtype), (gradient * dweight).to(ctx.weight_type), None, None


def _empty(logits: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device), torch.empty_like(logits)


@operator("loss_and_gradient", _empty)
def _loss_and_gradient(logits: Tensor, targets: Tensor, scale: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the losses (R,) float32 of logits (R,V), 0 for ignored rows, and the logits' gradient (R,V) by `scale`."""
    losses, dlogits = _empty(logits)
    rows, width = logits.shape
    wrap_triton(_cross_entropy_kernel)[(rows,)](
        logits=logits, targets=targets, scales=scale, losses=losses, dlogits=dlogits,
        WIDTH=width, IGNORED=ignore_index, COLUMNS=_COLUMNS, num_warps=_WARPS,
    )  # fmt: skip
    return losses, dlogits


@triton.jit
def _cross_entropy_kernel(
    logits, targets, scales, losses, dlogits,
    WIDTH: tl.constexpr, IGNORED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    source, out = logits + row * WIDTH, dlogits + row * WIDTH
    highest, total = float("-inf"), 0.0
    for start in range(0, WIDTH, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        # keep the row in the L2 cache for the second loop
        part = tl.load(source + column, mask=column < WIDTH, other=float("-inf"), eviction_policy="evict_last")
        part = part.to(tl.float32)
        higher = tl.maximum(highest, tl.max(part, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(part - higher), 0)
        highest = higher
    normaliser = highest + tl.log(total)
    counted = target != IGNORED
    wanted = tl.load(source + target, mask=counted, other=0.0).to(tl.float32)
    tl.store(losses + row, tl.where(counted, normaliser - wanted, 0.0))
    scale = tl.where(counted, tl.load(scales), 0.0)
    for start in range(0, WIDTH, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        part = tl.load(source + column, mask=column < WIDTH, other=float("-inf"), eviction_policy="evict_first")
        p = tl.exp(part.to(tl.float32) - normaliser)
        gradient = (p - tl.where(column == target, 1.0, 0.0)) * scale
        tl.store(out + column, gradient.to(dlogits.dtype.element_ty), mask=column < WIDTH)
