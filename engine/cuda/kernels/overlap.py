"""Kernels that start before the one launched before them has ended (programmatic dependent launch, on NVIDIA's Hopper).

A decode step is a chain of a hundred short kernels. Between two of them a device is idle for as long as a launch and
the first reads from memory take. So each kernel lets the next one start early, which reads while it waits. What it
reads then are weights, and what the kernel before it does not write: what those before that one wrote is there, since
each lets the next start only when it has waited itself. Before `wait_for_previous` returns a kernel writes nothing, and
computes addresses at most: it would wait for what it computes with.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.language.target_info import cuda_capability_geq

_CAPABILITY = (9, 0)
"""The lowest compute capability of devices that can do so; `_overlaps` says the same to kernels."""
_LINE = tl.constexpr(128)
"""Bytes of a line of the L2 cache."""


def overlapped(x: Tensor, early: bool = True) -> dict[str, bool]:
    """Return the option with which a kernel that calls `wait_for_previous` is launched on the device of x.

    If not `early`, it starts when the kernel before has ended.
    """
    return {"launch_pdl": True} if early and x.is_cuda and _overlaps_on(x.device) else {}


@cache
def _overlaps_on(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= _CAPABILITY


@triton.jit
def wait_for_previous():
    """Wait until the kernel before has ended and all that it wrote can be read, then let the next kernel start."""
    if cuda_capability_geq(9):
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def start_next():
    """Let the next kernel start, in the first one of a step, which waits for none."""
    if cuda_capability_geq(9):
        gdc_launch_dependents()


@triton.jit
def read_ahead(rows, length, MOST: tl.constexpr):
    """Have the elements from these pointers on, `length` of each and at most MOST, on their way to the L2 cache."""
    if cuda_capability_geq(9):
        EACH: tl.constexpr = _LINE // (rows.dtype.element_ty.primitive_bitwidth // 8)
        for start in tl.static_range(0, MOST, 8 * EACH):
            _fetch_lines(rows[:, None] + tl.minimum(start + tl.arange(0, 8) * EACH, length - 1)[None, :])


@triton.jit
def _fetch_lines(pointers):
    """Have the line at each of these pointers on its way to the L2 cache."""
    if cuda_capability_geq(9):
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32,
                                  is_pure=False, pack=1)  # fmt: skip
