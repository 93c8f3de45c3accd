"""GELU with its bias in one pass, against torch's."""

import pytest
import torch
from torch.nn import functional as F

from tests.training.kernels.harness import DEVICE, assert_close, drawn, exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_gelu_and_its_gradients(dtype: torch.dtype, tanh: bool, biased: bool) -> None:
    from thoughtbubbles.training.kernels.gelu import biased_gelu

    torch.manual_seed(0)
    x, bias = drawn(3, 7, 50, dtype=dtype), drawn(50) if biased else None
    got, reference = biased_gelu(x, bias, tanh=tanh), exact(x)
    whole = reference if bias is None else reference + bias
    want = F.gelu(whole, approximate="tanh" if tanh else "none")
    assert_close([got], [want], dtype)
    rest = [] if bias is None else [bias]
    dy = torch.randn_like(got)
    back = torch.autograd.grad(got, [x, *rest], dy)
    assert_close(back, torch.autograd.grad(want, [reference, *rest], dy.float()), dtype)


def test_the_error_function_is_exact_to_float32_everywhere() -> None:
    """The series stands in for the library's function: 1.5e-7 of erf is its bound, here at every size of input."""
    from thoughtbubbles.training.kernels.gelu import biased_gelu

    x = torch.linspace(-12, 12, 4801, device=DEVICE)[None]
    off = biased_gelu(x, None, tanh=False).double() - F.gelu(x.double())
    assert (off.abs() <= 2e-7 * x.abs().clamp(min=1)).all()
