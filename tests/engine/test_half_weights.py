"""Weights of 16 bits give the float32 product, and are taken for no others."""

import pytest
import torch
from torch import Tensor

from thoughtbubbles.engine.portable.half_weights import HalfWeights, halves_hold


@pytest.fixture
def weight() -> Tensor:
    """As a checkpoint stored in bfloat16 has them, a few of them tiny."""
    weight = 0.02 * torch.randn(48, 33)
    weight[0, :8] = torch.logspace(-4, -9, 8)
    return weight.bfloat16().float()


@pytest.mark.numeric
@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no FBGEMM here")
@pytest.mark.parametrize("rows", [1, 2, 7, 130])
@pytest.mark.parametrize("bias", [torch.randn(48), None], ids=["bias", "none"])
def test_the_product_is_that_of_float32(weight: Tensor, rows: int, bias: Tensor | None) -> None:
    assert halves_hold(weight)
    x = torch.randn(3, rows, 33)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(HalfWeights(weight, bias)(x), exact.float(), atol=2e-6, rtol=0)


def test_others_do_not_fit() -> None:
    fine, wide = torch.randn(4, 4), torch.full((4, 4), 1e5)
    for weight in (fine, wide, fine.bfloat16(), fine.double()):
        assert not halves_hold(weight)
