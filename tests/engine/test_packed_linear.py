"""The packed layer gives what torch's linear and GELU give."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from thoughtbubbles.engine.portable.linear import FEW_ROWS, Activation, PackedLinear

APPLY: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.mark.numeric
@pytest.mark.parametrize("activation", APPLY)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_it_is_the_linear_layer_and_its_activation(
    activation: Activation, bias: bool, threads: int, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    linear = torch.nn.Linear(48, 33, bias=bias).to(stored).float()
    packed = PackedLinear.of(linear, activation)
    with torch.inference_mode():
        for rows in (1, 2, FEW_ROWS // 4, FEW_ROWS // 4 + 1, 130):
            x = torch.randn(rows, 48)
            torch.testing.assert_close(packed(x), APPLY[activation](linear(x)), atol=1e-5, rtol=1e-5)


def test_rows_may_be_strided_and_have_more_dimensions() -> None:
    linear, x = torch.nn.Linear(16, 8), torch.randn(3, 4, 32)[..., ::2]
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear.of(linear)(x), linear(x), atol=1e-5, rtol=1e-5)


@pytest.mark.numeric
def test_in_bfloat16_it_is_as_close_as_torchs_own() -> None:
    linear, x = torch.nn.Linear(256, 64), torch.randn(5, 256)
    with torch.inference_mode():
        exact = linear(x)
        told = PackedLinear.of(linear.bfloat16())(x.bfloat16())
    assert told.dtype == torch.bfloat16
    torch.testing.assert_close(told.float(), exact, atol=0.02, rtol=0.02)


def test_the_weights_are_read_once() -> None:
    linear, x = torch.nn.Linear(8, 8), torch.randn(2, 8)
    packed = PackedLinear.of(linear)
    with torch.inference_mode():
        before = packed(x)
        linear.weight.zero_()
        assert torch.equal(packed(x), before)
