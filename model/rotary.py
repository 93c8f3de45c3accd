"""Fractional rotary positions (SPEC.md, "Positions"; paper App. D).

Letters: B batch, T tokens, S streams, N heads, H head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from thoughtbubbles.model.segments import segment_counts

BASE = 10000.0


class Rotation(NamedTuple):
    """The angles of one set of streams, computed once between two forks."""

    cos: Tensor
    """(B,1,S,H/2) float32."""
    sin: Tensor
    """(B,1,S,H/2) float32."""


def fractions(token_index: Tensor, tokens: int) -> Tensor:
    """j/q for the j-th of a token's q streams from the left, (B,S) float32; an original has 1.

    `token_index` (B,S) is sorted, `tokens` where padding, which may get any value.
    """
    counts = segment_counts(token_index, tokens)
    token = token_index.clamp(max=tokens - 1)
    before = (counts.cumsum(1) - counts).gather(1, token)
    rank = torch.arange(1, token_index.shape[1] + 1, device=token_index.device) - before
    return rank / counts.gather(1, token).clamp(min=1)


def rotation(positions: Tensor, head_width: int) -> Rotation:
    """The angles position · 10000^(-2i/H), i < H/2, for positions (B,S) float32."""
    exponent = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width
    angle = (positions[:, :, None] * BASE**-exponent)[:, None]
    return Rotation(angle.cos(), angle.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate the two halves of each head against each other, [-x2, x1]: (B,N,S,H), a fresh float32-or-wider tensor."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * by.cos - second * by.sin, second * by.cos + first * by.sin), dim=-1)
