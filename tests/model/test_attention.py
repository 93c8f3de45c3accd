"""Attention against a softmax with an explicit mask and an explicit additive bias: SPEC.md, "Attenuated block"."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.model.attention import Attention, attenuate, causal_attention, score_channel
from thoughtbubbles.model.rotary import rotate, rotation

B, S, N, H = 2, 7, 3, 4
D = N * H


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q·k / sqrt(H) + bias of each key) over the keys to the left, in float64; `bias` (B,S)."""
    logits = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias.double()[:, None, None, :]
    mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    return (logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v.double()).float()


def without_last_channel(x: Tensor) -> Tensor:
    return torch.cat((x[..., :-1], torch.zeros_like(x[..., -1:])), dim=-1)


def heads() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v (B,N,S,H) and cumulative scores (B,S)."""
    q, k, v = torch.randn(3, B, N, S, H)
    return q, k, v, -3 * torch.rand(B, S)


def module(*, fork_layers: tuple[int, ...], bias: bool = True) -> Attention:
    config = ModelConfig(
        vocab_size=2, block_size=4, max_block_size=8, n_layer=1, n_head=N, n_embd=D, fork_layers=fork_layers, bias=bias
    )
    attention = Attention(config)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def by_hand(attention: Attention, x: Tensor, score: Tensor, positions: Tensor) -> Tensor:
    """The module in SPEC.md's words, head by head."""
    projected = x @ attention.c_attn.weight.T + (0 if attention.c_attn.bias is None else attention.c_attn.bias)
    by = rotation(positions, H)
    outputs = []
    for n in range(N):
        q, k, v = (projected[:, None, :, start + n * H : start + (n + 1) * H] for start in (0, D, 2 * D))
        q, k = rotate(q, by), rotate(k, by)
        if attention.scored:
            q, k = without_last_channel(q), without_last_channel(k)
            outputs.append(explicit_attention(q, k, v * score.exp()[:, None, :, None], score / math.sqrt(H)))
        else:
            outputs.append(explicit_attention(q, k, v))
    return attention.c_proj(torch.cat(outputs, dim=-1)[:, 0])


@pytest.mark.numeric
def test_causal_attention_is_a_masked_softmax() -> None:
    q, k, v, _ = heads()
    torch.testing.assert_close(causal_attention(q, k, v), explicit_attention(q, k, v))


@pytest.mark.numeric
def test_the_score_channel_is_an_additive_bias() -> None:
    """c / sqrt(H) for each key, and one channel fewer; values weighted by P."""
    q, k, v, score = heads()
    weighted = v * score.exp()[:, None, :, None]
    wanted = explicit_attention(without_last_channel(q), without_last_channel(k), weighted, score / math.sqrt(H))
    torch.testing.assert_close(causal_attention(*score_channel(q, k, score), attenuate(v, score)), wanted)


@pytest.mark.numeric
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fork_layers", [(), (0,)], ids=["regular", "forking"])
def test_the_module_by_hand(fork_layers: tuple[int, ...], bias: bool) -> None:
    attention = module(fork_layers=fork_layers, bias=bias)
    x, score = torch.randn(B, S, D), -3 * torch.rand(B, S)
    positions = torch.rand(B, S).cumsum(1)
    found = attention(x, score, rotation(positions, H))
    torch.testing.assert_close(found, by_hand(attention, x, score, positions), atol=1e-5, rtol=1e-5)


def test_a_model_without_forks_ignores_scores() -> None:
    attention = module(fork_layers=())
    x, by = torch.randn(B, S, D), rotation(torch.arange(S).expand(B, S).float(), H)
    assert torch.equal(attention(x, torch.zeros(B, S), by), attention(x, torch.full((B, S), -1.0), by))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_gets_what_the_block_gets(dtype: torch.dtype) -> None:
    """`attend` sees rotated, scored and weighted heads, all in the values' type."""
    attention = module(fork_layers=(0,)).to(dtype)
    x, score = torch.randn(B, S, D, dtype=dtype), -3 * torch.rand(B, S)
    by = rotation(torch.arange(S).expand(B, S).float(), H)
    seen: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.extend((q, k, v))
        return causal_attention(q, k, v)

    assert torch.equal(attention(x, score, by, attend), attention(x, score, by))
    q, k, v = seen
    assert all(each.shape == (B, N, S, H) and each.dtype == dtype for each in seen)
    assert (q[..., -1] == 1).all()
    assert torch.equal(k[..., -1], score.to(dtype)[:, None].expand(B, N, S))
    plain = attention.c_attn(x)[..., 2 * D :].unflatten(-1, (N, H)).transpose(1, 2)
    torch.testing.assert_close(v, (plain.float() * score.exp()[:, None, :, None]).to(dtype))


def test_no_mask_is_ever_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model reaches torch's attention with `is_causal` and no mask, once a layer."""
    calls: list[dict[str, Any]] = []
    original = F.scaled_dot_product_attention

    def watched(*args: Tensor, **kwargs: Any) -> Tensor:  # noqa: ANN401
        assert len(args) == 3, "a mask may hide among positional arguments"
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    config = ModelConfig(
        vocab_size=5, block_size=8, max_block_size=16, n_layer=3, n_head=N, n_embd=D, fork_layers=(0, 2)
    )
    Thoughtbubbles(config)(torch.randint(5, (2, 6)), lengths=torch.tensor([6, 3]))
    assert [(call.get("attn_mask"), call["is_causal"]) for call in calls] == [(None, True)] * 3
