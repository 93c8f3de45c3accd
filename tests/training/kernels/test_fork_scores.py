"""The update before a fork with the fork's logits in one pass, against torch."""

import pytest
import torch
from torch.nn import functional as F

from tests.training.kernels.harness import DEVICE, assert_close, drawn, exact

ROWS, D = (3, 5), 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("biased", "scored"), [(True, True), (False, False)])
def test_update_and_logits_and_their_gradients(dtype: torch.dtype, biased: bool, scored: bool) -> None:
    from thoughtbubbles.training.kernels.fork_scores import update_and_score

    torch.manual_seed(0)
    x, update, weight, projection = drawn(*ROWS, D), drawn(*ROWS, D, dtype=dtype), drawn(D), drawn(2, D)
    bias, norm_bias = (drawn(D), drawn(D)) if biased else (None, None)
    score = (-torch.rand(ROWS, device=DEVICE)).requires_grad_() if scored else None
    got = update_and_score(x, update, bias, score, weight, norm_bias, projection, 1e-5)
    one, other = exact(x), exact(update)
    whole = other if bias is None else other + bias
    y = one + (whole if score is None else score.exp()[:, :, None] * whole)
    want = y, F.layer_norm(y, (D,), weight, norm_bias) @ projection.T
    assert [each.dtype for each in got] == [torch.float32] * 2
    assert_close(got, want, dtype)
    rest = [each for each in (bias, score, weight, norm_bias, projection) if each is not None]
    dy = [torch.randn_like(each) for each in got]
    back = torch.autograd.grad(got, [x, update, *rest], dy)
    assert [each.dtype for each in back[:2]] == [torch.float32, dtype]
    assert_close(back, torch.autograd.grad(want, [one, other, *rest], [each.float() for each in dy]), dtype)
