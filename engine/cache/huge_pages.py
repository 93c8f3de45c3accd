"""Memory in huge pages, where the system has them: what lies all over it is then found faster by the processor."""

import ctypes
import math
import sys

import numpy as np
import torch
from torch import Tensor

_SIZE = 1 << 21
_MADV_HUGEPAGE = 14


def huge_zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros on the device and in the type of `like`, on Linux's CPUs in huge pages.

    On a CPU the system gives memory for a page when that is first written: until then it is read as zeros.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    size = math.prod(shape) * like.element_size()
    memory = torch.from_numpy(np.zeros(size + _SIZE, np.uint8))  # calloc: not touched
    first = -memory.data_ptr() % _SIZE
    if sys.platform == "linux":  # a hint: what it returns changes nothing
        ctypes.CDLL(None).madvise(ctypes.c_void_p(memory.data_ptr() + first), ctypes.c_size_t(size), _MADV_HUGEPAGE)
    return memory[first : first + size].view(like.dtype).view(shape)
