"""Batches of token windows, as a function of the seed and the step alone: resuming needs no state of the loader."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class WindowLoader:
    """Windows of L + 1 tokens that tile the token file from a random offset, shuffled.

    Offset and order are drawn anew for every pass, so that no pass cuts the text where another did.
    Raises `ValueError` when the file is too short for one window at every offset.
    """

    def __init__(self, ids: NDArray[np.unsignedinteger[Any]], length: int, seed: int) -> None:
        self._ids = ids
        self._length = length
        self._seed = seed
        self.windows_per_pass = (len(ids) - length) // length
        if self.windows_per_pass < 1:
            raise ValueError(f"data: {len(ids)} training tokens are too few for windows of block_size {length}")
        self._starts = lru_cache(maxsize=2)(self._draw_starts)  # a batch may straddle two passes

    def batch(self, number: int, size: int) -> Tensor:
        """Batch `number` (from 0) of the endless stream, (size,L+1) int64: L inputs and the target of the last."""
        stream = range(number * size, (number + 1) * size)
        return torch.from_numpy(np.stack([self._window(index) for index in stream]))

    def _window(self, index: int) -> NDArray[np.int64]:
        number, position = divmod(index, self.windows_per_pass)
        start = self._starts(number)[position]
        return self._ids[start : start + self._length + 1].astype(np.int64)

    def _draw_starts(self, number: int) -> NDArray[np.int64]:
        generator = np.random.default_rng((self._seed, number))
        offset = generator.integers(self._length)
        return offset + self._length * generator.permutation(self.windows_per_pass)
