"""Words of 32 bits on their way to places in a device's memory, in pinned memory that a kernel reads."""

from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cuda.kernels.words import write_words

WORDS = 1 << 14
"""Words that one launch writes at most."""
BUFFERS = 4
"""Launches whose words the device may still have to read."""


class Staging:
    """Writes words to a block of int32. The host waits only where it is far ahead of the device."""

    def __init__(self, memory: Tensor) -> None:
        """`memory` (·,) int32 is on the device."""
        on_cuda = memory.is_cuda
        self._memory = memory
        staged = torch.zeros((BUFFERS, 2, WORDS), dtype=torch.int32, device="cpu", pin_memory=on_cuda)
        self._buffers = cycle([(each, each.numpy(), torch.cuda.Event() if on_cuda else None) for each in staged])

    def prepare(self) -> None:
        """Compile the kernel, and write nothing."""
        staged, _, _ = next(self._buffers)
        write_words(self._memory, staged, 0)

    def write(self, at: Indices, values: NDArray[np.int32]) -> None:
        """Write values to offsets of the memory, after all work that was launched before."""
        for begin in range(0, len(at), WORDS):
            part = slice(begin, begin + WORDS)
            staged, array, written = next(self._buffers)
            if written is not None:
                written.synchronize()  # what this buffer had before has been read
            count = len(at[part])
            array[0, :count], array[1, :count] = at[part], values[part]
            write_words(self._memory, staged, count)
            if written is not None:
                written.record()
