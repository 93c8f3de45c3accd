"""The tile sizes of a matrix product, by the usual number of rows."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """The rows and columns of the result that one program computes, and its settings."""

    rows: int
    columns: int
    depth: int
    """Inputs per iteration."""
    warps: int
    stages: int
    parts: int = 1
    """Programs that share the inputs of a tile; `normalise` adds their sums."""
    splits: int = 0
    """Warps that share the inputs of a tile, all of them, in `few_product`; 0 elsewhere."""


_FLOAT32 = Tiles(16, 32, 32, 4, 2)
"""For any number of rows, so that sums are bitwise equal in prefill, in decode and in any batch."""
_TABLE = {
    2: (Tiles(16, 32, 128, 4, 5, 4), Tiles(16, 32, 256, 4, 3, 3), Tiles(16, 32, 128, 4, 5)),
    16: (Tiles(16, 32, 128, 4, 5, 3), Tiles(16, 32, 256, 4, 3, 3), Tiles(16, 32, 128, 4, 5)),
    32: (Tiles(32, 32, 128, 4, 4, 3), Tiles(32, 32, 128, 4, 4, 3), Tiles(32, 32, 128, 4, 4)),
    64: (Tiles(64, 32, 128, 4, 4, 3), Tiles(64, 32, 128, 4, 4, 2), Tiles(64, 32, 128, 4, 4)),
    128: (Tiles(64, 64, 64, 4, 4, 4), Tiles(64, 32, 64, 4, 4, 2), Tiles(64, 64, 64, 4, 4)),
    256: (Tiles(128, 64, 64, 4, 4, 4), Tiles(64, 64, 64, 4, 4, 2), Tiles(128, 64, 64, 8, 4)),
    512: (Tiles(128, 64, 64, 8, 4, 2), Tiles(128, 64, 64, 8, 4, 2), Tiles(128, 128, 64, 8, 4)),
    1024: (Tiles(64, 128, 64, 4, 4), Tiles(128, 64, 64, 4, 4), Tiles(128, 64, 64, 8, 4)),
    2048: (Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 3)),
    4096: (Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 3)),
}
"""By the largest row count that they are tuned for; then for fewer outputs than inputs, as many, and more.

Up to 64 rows they are the fastest of many on an H100 for a model of 768 channels, and up to 1,024 on an H200. With few
rows, time goes into reading weights, which all multiprocessors must do at once: tiles are narrow, and programs share
inputs if outputs are few. With many rows, each weight must be read rarely.
"""
MOST_PARTS = max(tiles.parts for kinds in _TABLE.values() for tiles in kinds)
"""The most programs that share the inputs of a tile."""
MOST_ROWS_OF_PARTS = max(usual for usual, kinds in _TABLE.items() if any(tiles.parts > 1 for tiles in kinds))
"""The largest row count for which programs share inputs: more rows are enough programs without."""


FEW_ROWS = 8
"""The most usual rows that are few: their LayerNorm is part of the product that follows, and no inputs are shared out
among programs."""
_FEW_WIDTH = 1024
"""The most channels of a model for which this is so: a program keeps what it reads in registers."""
_FEW = (Tiles(8, 8, 1024, 8, 1, splits=8), Tiles(8, 8, 256, 4, 1, splits=4), Tiles(8, 16, 256, 4, 1, splits=4))
"""As each entry of `_TABLE`. The fastest of some on an H200 for a model of 768 channels."""
LIBRARY_ROWS = 2048
"""The usual number of rows from which on the library (cuBLAS) multiplies what is added to the streams.

It is given no number of live rows, so that it multiplies all that there may be.
"""


def tiles_of(x: Tensor, outputs: int, usual: int) -> Tiles:
    """Return the tiles for x (M,K), of which `usual` rows are live, and this many outputs."""
    if x.dtype == torch.float32:
        return _FLOAT32
    return _TABLE[next((most for most in _TABLE if usual <= most), max(_TABLE))][_kind(x, outputs)]


def few(x: Tensor, usual: int) -> bool:
    """Return whether streams x (M,D) are few, if so many are usual.

    In float32 they never are, so that sums are bitwise equal however many rows there are.
    """
    return x.dtype != torch.float32 and usual <= FEW_ROWS and x.shape[1] <= _FEW_WIDTH


def few_tiles(x: Tensor, outputs: int) -> Tiles:
    """Return the tiles for few rows x (M,K): of no more rows than there may be, since rows of a tile cost time."""
    tiles = _FEW[_kind(x, outputs)]
    return replace(tiles, rows=min(tiles.rows, max(2, 1 << (len(x) - 1).bit_length())))


def _kind(x: Tensor, outputs: int) -> int:
    return (outputs >= x.shape[1]) + (outputs > x.shape[1])


def precision(x: Tensor) -> str:
    """Return the input precision of products: float32 in full, not tf32, because selection must not depend on it."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
