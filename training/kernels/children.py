"""The gather of a fork, with a backward pass that gathers too (SPEC.md, "Fork").

A stream has at most two children, its fork copy and itself kept, and survivors among them are adjacent. So its gradient
needs no scatter-add, whose order a GPU does not fix. Letters: B batch, S streams before the fork, S' after it, D width.
"""

from typing import Any

import torch
from torch import Tensor

from thoughtbubbles.model.forking import take_rows
from thoughtbubbles.model.segments import segment_counts


def take_parents(x: Tensor, parent: Tensor) -> Tensor:
    """Return `take_rows` of x (B,S,D) at `parent` (B,S'): non-decreasing, each parent at most twice outside padding."""
    rows: Tensor = _Children.apply(x, parent)
    return rows


class _Children(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parent: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(parent)
        ctx.streams = x.shape[1]
        return take_rows(x, parent)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        counts = segment_counts(ctx.saved_tensors[0], ctx.streams)
        first, last = counts.cumsum(1) - counts, gradient.shape[1] - 1
        dx = gradient.new_zeros((), dtype=torch.float32)
        for j in range(2):
            own = take_rows(gradient, (first + j).clamp(max=last)).float()
            dx = dx + torch.where((j < counts)[:, :, None], own, 0.0)
        return dx.to(gradient.dtype), None
