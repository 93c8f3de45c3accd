"""A fork's two gathers with a way back that gathers too (SPEC.md, "Fork" and "Output averaging").

A stream has at most two children, its fork copy and itself kept, which survive side by side; a token's streams lie side
by side. So no gradient needs a scattered sum, whose order a device does not keep.
Letters: B batch, T tokens, S streams that arrive, S' that survive, D model width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model import ForkingBlock
from model.forking import LOWEST_LOG_P, Streams, compact
from model.segments import segment_counts
from model.selection import Selection, select


def fork(block: ForkingBlock, streams: Streams, selection: Selection, logits: Tensor | None = None) -> Streams:
    """The surviving streams, as `ForkingBlock.fork` gives them; `logits` (B,S,2) where they are known already."""
    log_p = F.logsigmoid(_logits(block, streams.x) if logits is None else logits).clamp(min=LOWEST_LOG_P)
    scores = (streams.score[:, :, None] + log_p).flatten(1)
    token_index = streams.token_index.repeat_interleave(2, dim=1)
    keep = select(selection, scores.detach(), token_index, streams.tokens)
    capacity = selection.capacity(streams.tokens, streams.x.shape[1])
    candidate, place = compact(keep, capacity), torch.where(keep, keep.cumsum(1) - 1, capacity)
    present = candidate < scores.shape[1]
    parent = torch.where(present, candidate // 2, 0)
    x: Tensor = _Children.apply(streams.x, parent, place)
    x = x + (present & (candidate % 2 == 0))[:, :, None] * block.fork_embedding.to(x.dtype)
    score = torch.where(present, scores.gather(1, torch.where(present, candidate, 0)), 0.0)
    token_index = torch.where(present, streams.token_index.gather(1, parent), streams.tokens)
    return Streams(x, score, token_index, streams.tokens)


def _logits(block: ForkingBlock, x: Tensor) -> Tensor:
    """Of fork and keep, (B,S,2) float32, as two sums over the channels, which are one pass with the norm."""
    with torch.autocast(x.device.type, enabled=False):
        normed = block.forking_ln(x.float())
        return torch.stack([(normed * row).sum(-1) for row in block.forking_score.weight.float()], dim=-1)


class _Children(torch.autograd.Function):
    """x[parent]: (B,S',D). `place` (B,2S) tells where a stream's candidates stand among the survivors; S': nowhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parent: Tensor, place: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(place)
        return _rows(x, parent)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (place,), survivors = ctx.saved_tensors, gradient.shape[1]
        dx = gradient.new_zeros((), dtype=torch.float32)
        for child in (place[:, 0::2], place[:, 1::2]):
            own = _rows(gradient, child.clamp(max=survivors - 1)).float()
            dx = dx + torch.where((child < survivors)[:, :, None], own, 0.0)
        return dx.to(gradient.dtype), None, None


def residual_average(streams: Streams, most: int) -> Tensor:
    """`model.averaging.residual_average` where no token has more than `most` streams: (B,T,D) float32."""
    weighted = streams.score.exp()[:, :, None] * streams.x.float()
    total: Tensor = _TokenSum.apply(weighted, streams.token_index, streams.tokens, most)
    return total


class _TokenSum(torch.autograd.Function):
    """(B,T,D) sums over each token's streams of values (B,S,D), from left to right."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, token_index: Tensor, tokens: int, most: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(token_index)
        counts = segment_counts(token_index, tokens)
        first, last = counts.cumsum(1) - counts, values.shape[1] - 1
        total = values.new_zeros(())
        for j in range(most):
            own = _rows(values, (first + j).clamp(max=last))
            total = total + torch.where((j < counts)[:, :, None], own, 0.0)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (token_index,), tokens = ctx.saved_tensors, gradient.shape[1]
        own = _rows(gradient, token_index.clamp(max=tokens - 1))
        return torch.where((token_index < tokens)[:, :, None], own, 0.0), None, None, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B,R,D) of x (B,S,D) at index (B,R)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
