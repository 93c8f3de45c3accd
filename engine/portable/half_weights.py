"""Products in float32 with weights stored in 16 bits, if 16 bits represent them.

Decoding is bound by reading weights, and these are half the bytes. A checkpoint stored in bfloat16 has weights of 8
significant bits, and float16 has 11, so it represents them exactly but for the least bits of the smallest. FBGEMM
widens them as it multiplies, so products and sums are those of float32.
"""

import warnings

import torch
from torch import Tensor

LOST = 2.0**-25
"""Largest rounding error of a weight, possible only below 2^-14: as much as float32 has for a number near one."""


def halves_hold(weight: Tensor) -> bool:
    """Return whether float16 represents these weights (out,in), float32 on a CPU, and FBGEMM is available."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if "fbgemm" not in torch.backends.quantized.supported_engines or not hasattr(torch, "fbgemm_pack_gemm_matrix_fp16"):
        return False
    return bool((weight.half().float() - weight).abs_().max() <= LOST)


class HalfWeights:
    """`x · weightᵀ + bias` for rows x (…,in), always on one thread."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Copy weights (out,in) for which `halves_hold`."""
        self._bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        with warnings.catch_warnings():  # torch warns once that a later one may lack the two operators
            warnings.simplefilter("ignore")
            self._weight = torch.fbgemm_pack_gemm_matrix_fp16(weight)
            self(weight[:1])

    def __call__(self, x: Tensor) -> Tensor:
        """Return (…,out) from (…,in), float32."""
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self._weight, self._bias)
