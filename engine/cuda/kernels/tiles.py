"""The tile sizes of a matrix product, by the usual number of rows."""

from dataclasses import dataclass

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


_FLOAT32 = Tiles(16, 32, 32, 4, 2)
"""For any number of rows, so that sums are bitwise equal in prefill, in decode and in any batch."""
_TABLE = {
    2: (Tiles(16, 32, 128, 4, 5, 4), Tiles(16, 32, 256, 4, 3, 3), Tiles(16, 32, 128, 4, 5)),
    16: (Tiles(16, 32, 128, 4, 5, 3), Tiles(16, 32, 256, 4, 3, 3), Tiles(16, 32, 128, 4, 5)),
    32: (Tiles(32, 32, 128, 4, 4, 3), Tiles(32, 32, 128, 4, 4, 3), Tiles(32, 32, 128, 4, 4)),
    64: (Tiles(64, 32, 128, 4, 4, 3), Tiles(64, 32, 128, 4, 4, 2), Tiles(64, 32, 128, 4, 4)),
    128: (Tiles(128, 64, 64, 4, 4, 6), Tiles(64, 64, 64, 4, 4, 2), Tiles(64, 32, 128, 4, 4)),
    256: (Tiles(64, 128, 64, 4, 4, 3), Tiles(64, 128, 64, 4, 4, 3), Tiles(64, 64, 64, 4, 4)),
    512: (Tiles(128, 128, 64, 8, 4, 3), Tiles(64, 64, 64, 4, 4), Tiles(128, 128, 64, 8, 4)),
    1024: (Tiles(64, 64, 128, 8, 4), Tiles(64, 64, 128, 8, 4), Tiles(64, 64, 64, 4, 4)),
    2048: (Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 3)),
    4096: (Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 4), Tiles(128, 256, 64, 8, 3)),
}
"""By the largest row count that they are tuned for; then for fewer outputs than inputs, as many, and more.

Up to 512 rows they are the fastest of many on an H100 for a model of 768 channels. With few rows, time goes into
reading weights, which all multiprocessors must do at once: tiles are narrow, and programs share inputs if outputs are
few. With many rows, each weight must be read rarely.
"""
MOST_PARTS = max(tiles.parts for kinds in _TABLE.values() for tiles in kinds)
"""The most programs that share the inputs of a tile."""
MOST_ROWS_OF_PARTS = max(usual for usual, kinds in _TABLE.items() if any(tiles.parts > 1 for tiles in kinds))
"""The largest row count for which programs share inputs: more rows are enough programs without."""


LIBRARY_ROWS = 2048
"""The usual number of rows from which on the library (cuBLAS) multiplies what is added to the streams.

It is given no number of live rows, so that it multiplies all that there may be.
"""


def tiles_of(x: Tensor, outputs: int, usual: int) -> Tiles:
    """Return the tiles for x (M,K), of which `usual` rows are live, and this many outputs."""
    if x.dtype == torch.float32:
        return _FLOAT32
    kind = (outputs >= x.shape[1]) + (outputs > x.shape[1])
    return _TABLE[next((most for most in _TABLE if usual <= most), max(_TABLE))][kind]


def precision(x: Tensor) -> str:
    """Return the input precision of products: float32 in full, not tf32, because selection must not depend on it."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
