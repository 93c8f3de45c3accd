# ruff: noqa: SLF001  (oneDNN is reached through operators that torch keeps for its own compiler)
"""A linear layer whose weights are laid out once, for the processor that will multiply with them.

Letters: S rows.
"""

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["none", "gelu", "gelu_tanh"]

_FUSED = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
"""oneDNN's names of the activations that it applies to a product while that is at hand."""


class PackedLinear:
    """`activation(x · weightᵀ + bias)` for rows x (…,in): (…,out), in the type of the weights.

    On a CPU oneDNN multiplies with weights in its own blocked layout. With the few rows of a decode step that takes
    half the time of torch's `linear`, which brings the weights into such an order again at every call. These are a
    copy, made once. On a device, and where torch was built without oneDNN, this is torch's `linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> None:
        self._bias, self._activation, self._fused = bias, activation, _FUSED[activation]
        self._multiply = torch.ops.mkldnn._linear_pointwise.default if _packs(weight) else None
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach()) if self._multiply else weight

    @classmethod
    def of(cls, linear: nn.Linear, activation: Activation = "none") -> Self:
        """The layer that a module's weights make."""
        return cls(linear.weight, linear.bias, activation)

    def __call__(self, x: Tensor) -> Tensor:
        """(…,in) → (…,out)."""
        if self._multiply:
            name, algorithm = self._fused
            fused: Tensor = self._multiply(x, self._weight, self._bias, name, [], algorithm)
            return fused
        product = F.linear(x, self._weight, self._bias)
        if self._activation == "none":
            return product
        return F.gelu(product, approximate="tanh" if self._activation == "gelu_tanh" else "none")


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN is there and computes in this type."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    native: bool = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return native or weight.dtype == torch.float32
