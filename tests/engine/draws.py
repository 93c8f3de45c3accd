"""What the tests of drawing share: seeds that make a chosen hash, and how far counts are from a distribution."""

import torch
from torch import Tensor

from thoughtbubbles.engine.sampling import _GOLDEN, _MIX_1, _MIX_2

MASK = 2**64 - 1
EXTREME_BITS = (0, MASK, 2**63, 2**63 - 1, 0xFFFFFF << 40, 1 << 11)
"""Hashes at which a careless conversion to float32 gives 0 or 1, and so noise that is infinite."""


def seed_of(bits: int, position: int, token: int) -> int:
    """The seed, int64, whose hash for this position and token is `bits`: SplitMix64's finaliser can be undone."""
    seed = _unmix((_unmix((_unmix(bits) - token) & MASK) - position) & MASK)
    return seed - (1 << 64) if seed >> 63 else seed


def _unmix(x: int) -> int:
    x = _unshift(x, 31) * pow(_MIX_2, -1, 1 << 64) & MASK
    x = _unshift(x, 27) * pow(_MIX_1, -1, 1 << 64) & MASK
    return (_unshift(x, 30) - _GOLDEN) & MASK


def _unshift(x: int, by: int) -> int:
    """The y for which y ^ (y >> by) is x."""
    y = x
    for _ in range(64 // by):
        y = x ^ (y >> by)
    return y


def uneven_logits(vocabulary: int, rare: float) -> Tensor:
    """Logits (V,) under which all but 64 tokens, anywhere in the vocabulary, have the probability `rare` together."""
    rank = torch.arange(vocabulary, dtype=torch.float64)
    common = (rank < 64) / (rank + 1)
    p = (1 - rare) * common / common.sum() + rare * (rank >= 64) / (vocabulary - 64)
    return p.log().float()[torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))]


def deviation(counts: Tensor, logits: Tensor) -> float:
    """χ² of draws (V,) against the softmax of logits (V,), in standard deviations from what chance gives.

    Tokens that are expected fewer than ten times are counted as one.
    """
    expected = logits.double().softmax(0) * counts.sum()
    own = expected >= 10
    seen, want = counts[own].double(), expected[own]
    if not own.all():
        seen, want = torch.cat((seen, counts[~own].sum()[None])), torch.cat((want, expected[~own].sum()[None]))
    freedom = len(seen) - 1
    return float((((seen - want) ** 2 / want).sum() - freedom) / (2 * freedom) ** 0.5)
