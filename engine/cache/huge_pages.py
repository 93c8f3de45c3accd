"""Memory in huge pages, where the system has them: what lies all over it is then found faster by the processor."""

import ctypes
import sys

from torch import Tensor

_SIZE = 1 << 21
_MADV_HUGEPAGE = 14


def huge_zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros on the device and in the type of `like`, on Linux's CPUs in huge pages."""
    memory = like.new_empty(shape)
    if like.device.type == "cpu" and sys.platform == "linux":
        first = -(-memory.data_ptr() // _SIZE) * _SIZE
        end = (memory.data_ptr() + memory.nbytes) // _SIZE * _SIZE
        if end > first:  # a hint: what it returns changes nothing
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_HUGEPAGE)
    return memory.zero_()
