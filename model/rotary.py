"""Fractional rotary positions (SPEC.md, "Positions"; paper App. D).

Letters: B batch, T tokens, S streams, N heads, H head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from thoughtbubbles.model.segments import segment_counts

_BASE = 10000.0


class Rotation(NamedTuple):
    """Cosines and sines of the angles of a set of streams, the same for all layers between two forks."""

    cos: Tensor
    """(B,1,S,H/2) float32."""
    sin: Tensor
    """(B,1,S,H/2) float32."""


def fractions(token_index: Tensor, tokens: int) -> Tensor:
    """Return j/q (B,S) float32 for the j-th of a token's q streams from the left; an original has 1.

    `token_index` (B,S) is sorted, and `tokens` in padding, for which the result has no meaning.
    """
    counts = segment_counts(token_index, tokens)
    token = token_index.clamp(max=tokens - 1)
    before = (counts.cumsum(1) - counts).gather(1, token)
    rank = torch.arange(1, token_index.shape[1] + 1, device=token_index.device) - before
    return rank / counts.gather(1, token).clamp(min=1)


def rotary_frequencies(head_width: int, device: torch.device) -> Tensor:
    """Return 10000^(-2i/H) (H/2,) float32, i < H/2: the angle per unit of position."""
    return _BASE ** -(torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)


def rotation(positions: Tensor, head_width: int) -> Rotation:
    """Return cosine and sine of position · frequency for positions (B,S) float32."""
    angle = (positions[:, :, None] * rotary_frequencies(head_width, positions.device))[:, None]
    return Rotation(angle.cos(), angle.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Return x (B,N,S,H) with the halves of each head rotated against each other, [-x2, x1]; new, at least float32."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * by.cos - second * by.sin, second * by.cos + first * by.sin), dim=-1)
