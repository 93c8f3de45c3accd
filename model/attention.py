"""Attention with the score bias and attenuated values (SPEC.md, "Attenuated block"; paper §2.4, eq. 8).

Letters: B batch, S streams, N heads, H head width, D = N·H.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.rotary import Rotation, rotate


class Attend(Protocol):
    """An implementation of attention: within the block, or over a cache that the block's keys are appended to."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, /) -> Tensor:
        """Return attention (B,N,S,H) of q over k and v, (B,N,S,H) each: causal in stream order, scaled by 1/sqrt(H)."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention within the block, by torch's causal flash path without an explicit mask."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Return softmax(q·k / sqrt(H)), causal in stream order: (B,N,S,S) float32 from (B,N,S,H)."""
    logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return logits.masked_fill(hidden, -torch.inf).softmax(-1)


class Attention(nn.Module):
    """Multi-head attention over streams, biased by their cumulative scores in a model with fork layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.scored = bool(config.fork_layers)
        self.score_bias = self.scored and config.score_bias
        self.value_attenuation = self.scored and config.value_attenuation
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, score: Tensor, by: Rotation, attend: Attend = causal_attention) -> Tensor:
        """Return (B,S,D) from normalised streams (B,S,D), their cumulative scores (B,S) and their rotation."""
        q, k, v = self._heads(x)
        q, k = rotate(q, by), rotate(k, by)
        if self.score_bias:
            q, k = score_channel(q, k, score)
        if self.value_attenuation:
            v = attenuate(v, score)
        y = attend(q.type_as(v), k.type_as(v), v)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B,S,3,N,H)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        return q, k, v


def score_channel(q: Tensor, k: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Return q and k with the score bias c / sqrt(H) in the last channel of each head.

    q, k are (B,N,S,H), `score` (B,S). The query's last channel is 1 and the key's is c, so the bias needs no mask.
    """
    c = score[:, None, :, None]
    q = torch.cat((q[..., :-1], torch.ones_like(q[..., -1:])), dim=-1)
    k = torch.cat((k[..., :-1], c.expand(-1, k.shape[1], -1, -1).to(k.dtype)), dim=-1)
    return q, k


def attenuate(v: Tensor, score: Tensor) -> Tensor:
    """Return the values (B,N,S,H) times P = exp(c), for `score` c (B,S), in the values' dtype."""
    return (v * score[:, None, :, None].exp()).type_as(v)
