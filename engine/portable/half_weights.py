"""Products in float32 with weights of 16 bits, where 16 bits hold the weights.

Decoding waits for weights, and these are half the bytes. A checkpoint stored in bfloat16 has weights of 8 significant
bits, and float16 has 11: it has them as they are, but for the least bits of the very smallest. FBGEMM widens them again
as it multiplies, so products and sums are those of float32.
"""

import warnings

import torch
from torch import Tensor

LOST = 2.0**-25
"""The most that a weight may lose, which only one below 2^-14 can: as much as float32 loses of a number near one."""


def halves_hold(weight: Tensor) -> bool:
    """Whether float16 has these weights (out,in), float32 on a CPU, and FBGEMM is there to multiply with them."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if "fbgemm" not in torch.backends.quantized.supported_engines or not hasattr(torch, "fbgemm_pack_gemm_matrix_fp16"):
        return False
    return bool((weight.half().float() - weight).abs_().max() <= LOST)


class HalfWeights:
    """`x · weightᵀ + bias` for rows x (…,in), on one thread however many there are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """A copy of weights (out,in) that `halves_hold`."""
        self._bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        with warnings.catch_warnings():  # torch warns once that a later one may lack the two operators
            warnings.simplefilter("ignore")
            self._weight = torch.fbgemm_pack_gemm_matrix_fp16(weight)
            self(weight[:1])

    def __call__(self, x: Tensor) -> Tensor:
        """(…,in) → (…,out), float32."""
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self._weight, self._bias)
