"""Queries, keys and values in one pass, against the model's own three."""

import pytest
import torch
from torch import Tensor

from tests.training.kernels.harness import DEVICE, assert_close, drawn, exact
from thoughtbubbles.model.attention import attenuate, score_channel
from thoughtbubbles.model.rotary import Rotation, rotate

B, S, N, H = 2, 5, 3, 8  # three heads: no power of two


def plain(qkv: Tensor, bias: Tensor | None, by: Rotation, score: Tensor, *, scored: bool) -> tuple[Tensor, ...]:
    whole = qkv if bias is None else qkv + bias
    q, k, v = whole.unflatten(-1, (3, N, H)).permute(2, 0, 3, 1, 4)
    q, k = rotate(q, by), rotate(k, by)
    return (*score_channel(q, k, score), attenuate(v, score)) if scored else (q, k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scored", "biased"), [(True, True), (True, False), (False, True)])
def test_heads_and_their_gradients(dtype: torch.dtype, scored: bool, biased: bool) -> None:
    from thoughtbubbles.training.kernels.heads import attention_heads

    torch.manual_seed(0)
    qkv, bias = drawn(B, S, 3 * N * H, dtype=dtype), drawn(3 * N * H) if biased else None
    angle = torch.rand(B, 1, S, H // 2, device=DEVICE) * 500
    by, score = Rotation(angle.cos(), angle.sin()), (-torch.rand(B, S, device=DEVICE)).requires_grad_()
    got = attention_heads(qkv, bias, *by, score, heads=N, biased=scored, attenuated=scored)
    reference = exact(qkv)
    want = plain(reference, bias, by, score, scored=scored)
    assert_close(got, want, dtype)
    others = [each for each in (bias, score if scored else None) if each is not None]
    dy = [torch.randn_like(each) for each in got]
    back = torch.autograd.grad(got, [qkv, *others], dy)
    assert_close(back, torch.autograd.grad(want, [reference, *others], [each.float() for each in dy]), dtype)


def test_heads_lie_as_flash_attention_wants_them() -> None:
    """(B,S,N,H) in memory, so that neither attention nor what follows copies them."""
    from thoughtbubbles.training.kernels.heads import attention_heads

    angle = torch.rand(B, 1, S, H // 2, device=DEVICE)
    score = torch.zeros(B, S, device=DEVICE)
    heads = attention_heads(drawn(B, S, 3 * N * H), None, angle.cos(), angle.sin(), score, heads=N, biased=True,
                            attenuated=True)  # fmt: skip
    for each in heads:
        assert each.shape == (B, N, S, H)
        assert each.transpose(1, 2).is_contiguous()
