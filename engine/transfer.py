"""Numbers between host and device without either waiting for the other.

From pageable memory a copy first waits for all that the device was asked to do: hence pinned memory.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def to_device(values: ArrayLike, device: torch.device) -> Tensor:
    """Integers as int64 on a device, there once it has done what it was asked before."""
    here = torch.tensor(np.asarray(values, np.int64), device="cpu")
    if device.type == "cuda":
        here = here.pin_memory()
    return here.to(device, non_blocking=True)


def to_host(source: Tensor) -> Tensor:
    """What a tensor of the device will have held at this point, on the host once the device is there."""
    if not source.is_cuda:
        return source.clone()
    return torch.empty_like(source, device="cpu", pin_memory=True).copy_(source, non_blocking=True)
