"""How much of a matrix product one program does, by the rows there may be."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """One program's share of a product (M,K) · (K,O)."""

    rows: int
    columns: int
    depth: int
    """Inputs taken at a time."""
    warps: int
    stages: int

    @classmethod
    def of(cls, x: Tensor, outputs: int) -> Self:
        """For rows x (M,K) and O outputs. Few rows are a matter of reading weights with all multiprocessors at once,
        hence narrow tiles; many rows one of reading each weight seldom.
        """
        rows, narrow = x.shape[0], outputs <= 1024
        if x.dtype == torch.float32:
            return cls(16, 32, 32, 4, 2)
        if rows <= 16:
            return cls(16, 16, 256, 4, 5) if narrow else cls(16, 32, 128, 4, 5)
        if rows <= 128:
            return cls(32, 16, 128, 4, 4) if narrow else cls(32, 32, 128, 4, 4)
        if rows <= 512:
            return cls(64, 32, 128, 4, 4) if narrow else cls(64, 64, 128, 4, 4)
        return cls(64, 64, 128, 8, 4) if narrow else cls(64, 64, 64, 4, 4)


def precision(x: Tensor) -> str:
    """How products of this type are computed: float32 in full, never as tf32, for selection must not depend on it."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
