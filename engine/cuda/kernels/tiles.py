"""How much of a matrix product one program does, by the rows that are usual."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Rows and columns of the result that one program computes, and how."""

    rows: int
    columns: int
    depth: int
    """Inputs taken at a time."""
    warps: int
    stages: int
    parts: int = 1
    """Programs that share out the inputs of a tile; their sums are added up later."""


_FLOAT32 = Tiles(16, 32, 32, 4, 2)
"""Whatever the rows: so a sum is the same to the bit in prefill and decode, and in any batch."""
_TABLE = {
    2: (Tiles(16, 32, 128, 4, 5, 4), Tiles(16, 32, 256, 4, 3, 3), Tiles(16, 32, 128, 4, 5)),
    16: (Tiles(16, 32, 128, 4, 5, 3), Tiles(16, 32, 256, 4, 3, 3), Tiles(16, 32, 128, 4, 5)),
    32: (Tiles(32, 32, 128, 4, 4, 3), Tiles(32, 32, 128, 4, 4, 3), Tiles(32, 32, 128, 4, 4)),
    64: (Tiles(64, 32, 128, 4, 4, 3), Tiles(64, 32, 128, 4, 4, 2), Tiles(64, 32, 128, 4, 4)),
    128: (Tiles(128, 64, 64, 4, 4, 6), Tiles(64, 64, 64, 4, 4, 2), Tiles(64, 32, 128, 4, 4)),
    256: (Tiles(64, 128, 64, 4, 4, 3), Tiles(64, 128, 64, 4, 4, 3), Tiles(64, 64, 64, 4, 4)),
    512: (Tiles(128, 128, 64, 8, 4, 3), Tiles(64, 64, 64, 4, 4), Tiles(128, 128, 64, 8, 4)),
    1024: (Tiles(64, 64, 128, 8, 4), Tiles(64, 64, 128, 8, 4), Tiles(64, 64, 64, 4, 4)),
}
"""By usual rows up to which, the last for all beyond; and by outputs: fewer than the inputs, as many, more.

Up to 512 rows they are the quickest of many on an H100, for a model of 768 channels. Few rows are a matter of reading
weights with all multiprocessors at once, hence narrow tiles, and shared inputs where outputs are few; many rows one of
reading each weight seldom.
"""
MOST_PARTS = max(tiles.parts for kinds in _TABLE.values() for tiles in kinds)
"""Parts that a product's inputs are shared out into, at most."""
MOST_ROWS_OF_PARTS = max(usual for usual, kinds in _TABLE.items() if any(tiles.parts > 1 for tiles in kinds))
"""Usual rows up to which they are: many rows are programs enough."""


def tiles_of(x: Tensor, outputs: int, usual: int) -> Tiles:
    """For x (M,K) of which `usual` rows are, and O outputs."""
    if x.dtype == torch.float32:
        return _FLOAT32
    kind = (outputs >= x.shape[1]) + (outputs > x.shape[1])
    return _TABLE[next((most for most in _TABLE if usual <= most), max(_TABLE))][kind]


def precision(x: Tensor) -> str:
    """How products of this type are computed: float32 in full, never as tf32, for selection must not depend on it."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
