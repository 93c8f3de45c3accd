"""The attenuated block of `model.transformer` for rows of streams over a cache, in as few torch operators as possible.

Letters: S streams, N heads, H head width, D model width.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from thoughtbubbles.engine.portable.head_map import HeadMap
from thoughtbubbles.engine.portable.linear import PackedLinear
from thoughtbubbles.model.transformer import Block


class Attend(Protocol):
    """Attention of new queries to cached and new keys."""

    def __call__(self, heads: Tensor, /) -> Tensor:
        """Return (S,D) from new queries, keys and values (S,3,N,H), float32: causal in stream order, scale 1/√H."""


class CachedBlock:
    """One layer. Reads the weights of the model's block once, when it is made."""

    def __init__(self, block: Block) -> None:
        self._n_head = block.attn.n_head
        self._norms = block.ln_1, block.ln_2
        self._heads = PackedLinear.of(block.attn.c_attn)
        self._attended = PackedLinear.of(block.attn.c_proj)
        self._hidden = PackedLinear.of(block.mlp.c_fc, "gelu_tanh" if block.mlp.approximate == "tanh" else "gelu")
        self._activated = PackedLinear.of(block.mlp.c_proj)

    def __call__(self, x: Tensor, by: HeadMap, attend: Attend) -> None:
        """Add both updates, weighted by P, to the residual streams x (S,D), in place."""
        heads = by(self._heads(layer_norm(x, self._norms[0])).view(len(x), 3, self._n_head, -1))
        x.addcmul_(by.weight, self._attended(attend(heads).to(x.dtype)))
        x.addcmul_(by.weight, self._activated(self._hidden(layer_norm(x, self._norms[1]))))


def layer_norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
    """Return a module's norm of rows (S,D)."""
    return torch.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
