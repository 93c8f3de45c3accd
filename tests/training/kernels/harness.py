"""What the kernels' tests share: random tensors and a distance."""

from collections.abc import Iterable

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""How far a kernel may be from float32 arithmetic, as a part of the result's norm."""


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers that need a gradient."""
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def exact(tensor: Tensor) -> Tensor:
    """The same in float32, a leaf of its own."""
    return tensor.detach().float().requires_grad_()


def assert_close(got: Iterable[Tensor], want: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Each tensor of `got` lies as near to its like in `want` as `dtype` lets it."""
    for one, other in zip(got, want, strict=True):
        far = (one.float() - other).norm() / other.norm()
        assert far <= CLOSE[dtype], f"{tuple(other.shape)}: off by {far:.1e}"
