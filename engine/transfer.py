"""Copies between host and device that neither waits for.

A copy from pageable memory waits until the device has done all its work: hence pinned memory.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def to_device(values: ArrayLike, device: torch.device) -> Tensor:
    """Return integers as int64 on a device, after all work launched on it before."""
    host = torch.tensor(np.asarray(values, np.int64), device="cpu")
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def to_host(source: Tensor) -> Tensor:
    """Return a host copy of a device tensor, valid once the device has done all work launched before."""
    if not source.is_cuda:
        return source.clone()
    return torch.empty_like(source, device="cpu", pin_memory=True).copy_(source, non_blocking=True)
