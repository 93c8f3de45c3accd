"""Copies between host and device. Only `exchanged` waits for the device.

A copy from pageable memory waits until the device has done all its work: hence pinned memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def to_device(values: ArrayLike, device: torch.device) -> Tensor:
    """Return integers as int64 on a device, after all work launched on it before."""
    array = np.asarray(values, np.int64)
    host = torch.empty(array.shape, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    host.numpy()[...] = array
    return host.to(device, non_blocking=True)


def to_host(source: Tensor) -> Tensor:
    """Return a host copy of a device tensor, valid once the device has done all work launched before."""
    if not source.is_cuda:
        return source.clone()
    return torch.empty_like(source, device="cpu", pin_memory=True).copy_(source, non_blocking=True)


@contextmanager
def exchanged(these: Mapping[str, Tensor], those: Mapping[str, Tensor]) -> Iterator[None]:
    """Swap the values of the tensors with the same names, in place, and back if this or the block raises.

    Names, shapes and dtypes of both are the same; the devices may differ. Memory is allocated once, before anything
    changes.
    """
    spare = torch.empty(max(tensor.nbytes for tensor in these.values()), dtype=torch.uint8, device=_device(these))
    swapped: list[str] = []
    try:
        for name, tensor in these.items():
            _swap(tensor, those[name], spare)
            swapped.append(name)
        yield
    except BaseException:
        for name in swapped:
            _swap(these[name], those[name], spare)
        raise


def _device(tensors: Mapping[str, Tensor]) -> torch.device:
    return next(iter(tensors.values())).device


def _swap(a: Tensor, b: Tensor, spare: Tensor) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype), "weights of another model"
    before = spare[: a.nbytes].view(a.dtype).view(a.shape).copy_(a)
    a.copy_(b)
    b.copy_(before)
