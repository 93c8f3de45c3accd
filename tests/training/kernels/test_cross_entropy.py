"""The head's loss with its gradient in one pass over rows of several blocks, against torch's."""

import pytest
import torch
from torch.nn import functional as F

from tests.training.kernels.harness import DEVICE, assert_close, drawn, exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_with_padding(dtype: torch.dtype) -> None:
    from thoughtbubbles.training.kernels.cross_entropy import linear_cross_entropy

    torch.manual_seed(0)
    x, weight, targets = (
        drawn(11, 16, dtype=dtype),
        drawn(100, 16, dtype=dtype),
        torch.randint(100, (11,), device=DEVICE),
    )
    targets[3] = targets[10] = -1
    one, other, kept = exact(x), exact(weight), exact(weight)
    want = F.cross_entropy(one @ other.T, targets, ignore_index=-1)
    got = linear_cross_entropy(x, kept, targets, ignore_index=-1)
    assert_close([got], [want], dtype)
    back = torch.autograd.grad(got, [x, kept], torch.tensor(0.25, device=DEVICE))
    assert_close(back, torch.autograd.grad(want, [one, other], torch.tensor(0.25, device=DEVICE)), dtype)
