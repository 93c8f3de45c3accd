# ruff: noqa: SLF001  (oneDNN is reached through operators that torch keeps for its own compiler)
"""A linear layer whose weights are laid out once, for the processor that will multiply with them."""

import sys
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoughtbubbles.engine.portable.half_weights import HalfWeights, halves_hold

Activation = Literal["none", "gelu", "gelu_tanh"]

FEW_ROWS = 32
"""Rows, divided by the threads there are, up to which one thread with weights of 16 bits outruns all with 32."""

_FUSED = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
"""oneDNN's names of the activations that it applies to a product while that is at hand."""


class PackedLinear:
    """`activation(x · weightᵀ + bias)` for rows x (…,in): (…,out), in the type of the weights.

    On a CPU weights that 16 bits hold are multiplied as such (`half_weights.py`), where one thread is all there is or
    rows are few. Otherwise oneDNN multiplies with weights in its own blocked layout: with the few rows of a decode step
    that takes half the time of torch's `linear`, which brings weights into such an order again at every call. Either
    is a copy, made once. On a device, and where torch was built without the two, this is torch's `linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> None:
        weight, threads = weight.detach(), torch.get_num_threads()
        self._halves = HalfWeights(weight, bias) if halves_hold(weight) else None
        self._few_rows = 0 if self._halves is None else sys.maxsize if threads == 1 else FEW_ROWS // threads
        packs = self._few_rows < sys.maxsize and _packs(weight)
        self._blocked = torch.ops.mkldnn._linear_pointwise.default if packs else None
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if packs else weight
        self._bias, self._activation, self._fused = bias, activation, _FUSED[activation]

    @classmethod
    def of(cls, linear: nn.Linear, activation: Activation = "none") -> Self:
        """The layer that a module's weights make."""
        return cls(linear.weight, linear.bias, activation)

    def __call__(self, x: Tensor) -> Tensor:
        """(…,in) → (…,out)."""
        if self._halves and x.shape[:-1].numel() <= self._few_rows:
            return self._activate(self._halves(x))
        if self._blocked:
            name, algorithm = self._fused
            fused: Tensor = self._blocked(x, self._weight, self._bias, name, [], algorithm)
            return fused
        return self._activate(F.linear(x, self._weight, self._bias))

    def _activate(self, product: Tensor) -> Tensor:
        if self._activation == "none":
            return product
        return F.gelu(product, approximate="tanh" if self._activation == "gelu_tanh" else "none")


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN is there and computes in this type."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    native: bool = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return native or weight.dtype == torch.float32
