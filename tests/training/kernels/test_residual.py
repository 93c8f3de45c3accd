"""The attenuated update with its norm in one pass, against torch."""

import pytest
import torch
from torch.nn import functional as F

from tests.training.kernels.harness import DEVICE, assert_close, drawn, exact

ROWS, D = (3, 7), 24  # 24 channels: no power of two


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("biased", "scored"), [(True, True), (True, False), (False, True), (False, False)])
def test_update_and_norm_and_their_gradients(dtype: torch.dtype, biased: bool, scored: bool) -> None:
    from thoughtbubbles.training.kernels.residual import update_and_norm

    torch.manual_seed(0)
    x, update, weight = drawn(*ROWS, D), drawn(*ROWS, D, dtype=dtype), drawn(D)
    bias, norm_bias = (drawn(D), drawn(D)) if biased else (None, None)
    score = (-torch.rand(ROWS, device=DEVICE)).requires_grad_() if scored else None
    got = update_and_norm(x, update, bias, score, weight, norm_bias, 1e-5)
    assert [each.dtype for each in got] == [torch.float32, dtype], "streams keep the type that they have"
    one, other = exact(x), exact(update)
    whole = other if bias is None else other + bias
    y = one + (whole if score is None else score.exp()[:, :, None] * whole)
    want = y, F.layer_norm(y, (D,), weight, norm_bias)
    assert_close(got, want, dtype)
    rest = [each for each in (bias, score, weight, norm_bias) if each is not None]
    dy = [torch.randn_like(each) for each in got]
    back = torch.autograd.grad(got, [x, update, *rest], dy)
    assert [each.dtype for each in back[:2]] == [torch.float32, dtype]
    assert_close(back, torch.autograd.grad(want, [one, other, *rest], [each.float() for each in dy]), dtype)
