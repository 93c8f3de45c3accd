# ruff: noqa: SLF001  (oneDNN is reached through operators that torch keeps for its own compiler)
"""A linear layer whose weights are packed once, for the processor that multiplies with them."""

import sys
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoughtbubbles.engine.portable.half_weights import HalfWeights, halves_hold

Activation = Literal["none", "gelu", "gelu_tanh"]

FEW_ROWS = 32
"""Rows up to which one thread with 16-bit weights is faster than all with 32 bits, to be divided by the threads."""

_FUSED = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
"""oneDNN's names of the activations that it fuses with a product."""


class PackedLinear:
    """`activation(x · weightᵀ + bias)` for rows x (…,in): (…,out), in the dtype of the weights.

    On a CPU, weights that 16 bits represent are stored so (`half_weights.py`) and used if there is one thread or rows
    are few. Otherwise oneDNN multiplies with weights in its blocked layout: for the few rows of a decode step that
    takes half the time of torch's `linear`, which packs the weights at every call. Each is a copy, made once. On a
    device, and if torch was built without the two, this is torch's `linear`.
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
        """Return the layer with a module's weights."""
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
    """Return whether oneDNN is available and computes in this dtype."""
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    native: bool = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return native or weight.dtype == torch.float32
