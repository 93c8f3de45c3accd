"""`next_token_loss` with Triton kernels between the matrix products: the same loss, faster on a GPU.

It computes the same function of the same weights as `Thoughtbubbles.forward` (SPEC.md, "Forward pass"); tests compare
the two. The blocks are written as one sequence of updates, so that a residual update and the following norm, also that
of the next block, are one kernel. Residual streams and their gradients stay float32, like scores, sums and weights:
attenuated updates are small compared with the stream, and bfloat16 would round them away (docs/TRAINING_SPEED.md).
Inputs and outputs of matrix products have the products' dtype.
Letters: B batch, T tokens, S streams, D model width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.model.attention import causal_attention
from thoughtbubbles.model.forking import Streams, accumulate, fork
from thoughtbubbles.model.rotary import Rotation
from thoughtbubbles.model.selection import Selection
from thoughtbubbles.model.transformer import MLP, Block, ForkingBlock
from thoughtbubbles.training.data.loader import PADDING, inputs, targets
from thoughtbubbles.training.kernels.children import take_parents
from thoughtbubbles.training.kernels.cross_entropy import linear_cross_entropy
from thoughtbubbles.training.kernels.fork_scores import update_and_score
from thoughtbubbles.training.kernels.gelu import biased_gelu
from thoughtbubbles.training.kernels.heads import attention_heads
from thoughtbubbles.training.kernels.residual import update_and_norm


class Update(NamedTuple):
    """An update of the residual streams; the kernel that adds it to the streams applies bias and score."""

    value: Tensor
    """(B,S,D), without the bias."""
    bias: Tensor | None
    """(D)."""
    score: Tensor | None
    """(B,S): the update is multiplied by exp(score); None: by 1."""


def fused_loss(
    model: Thoughtbubbles,
    windows: Tensor,
    ratio: float | None = None,
    noise: Tensor | None = None,
    *,
    padded: bool = False,
) -> Tensor:
    """Return `next_token_loss`, for a model whose averaging is not `logit`."""
    assert model.config.averaging != "logit"
    ids, expected = windows[:, :-1], windows[:, 1:]
    lengths = (expected != PADDING).sum(1) if padded else None
    streams = model.embed(inputs(ids) if padded else ids, lengths)
    streams = _streams(model, streams, Selection.of(model.config, "blockwise", ratio, noise))
    hidden = model.readout(streams, nn.Identity()).flatten(0, 1)
    return linear_cross_entropy(
        hidden.to(_product_type(hidden)), model.transformer.wte.weight, targets(expected).flatten(),
        ignore_index=PADDING,
    )  # fmt: skip


def _streams(model: Thoughtbubbles, streams: Streams, selection: Selection) -> Streams:
    """Return the residual streams after the last layer."""
    by, update, weighted = model.rotation(streams.token_index, streams.tokens), None, False
    for block in model.blocks:
        if isinstance(block, ForkingBlock):
            streams, update = _fork(block, streams, update, selection), None
            by, weighted = model.rotation(streams.token_index, streams.tokens), block.residual_attenuation
        weigh = streams.score if weighted else None  # before the first fork P is 1
        streams, h = _update_and_norm(streams, update, block.ln_1)
        update = _update(block.dropout, *_attend(block, h, streams.score, by), weigh)
        streams, h = _update_and_norm(streams, update, block.ln_2)
        update = _update(block.dropout, *_mlp(block.mlp, h), weigh)
    return _finish(streams, update)


def _update(dropout: nn.Dropout, value: Tensor, bias: Tensor | None, score: Tensor | None) -> Update:
    """Return the update by `value` (B,S,D) and its bias. Dropout is of their sum, so that it adds the bias itself."""
    if not (dropout.training and dropout.p):
        return Update(value, bias, score)
    return Update(dropout(value if bias is None else value + bias.type_as(value)), None, score)


def _fork(block: ForkingBlock, streams: Streams, update: Update | None, selection: Selection) -> Streams:
    """Return the streams that survive the fork before this block, after `update` is added."""
    if update is None:
        scores = block.candidate_scores(streams.x, streams.score)
    else:
        norm, projection = block.forking_ln, block.forking_score.weight
        x, logits = update_and_score(streams.x, *update, norm.weight, norm.bias, projection, norm.eps)
        streams, scores = _with(streams, x), accumulate(streams.score, logits)
    return fork(streams, scores, block.fork_embedding, selection, take_parents)[0]


def _update_and_norm(streams: Streams, update: Update | None, norm: nn.LayerNorm) -> tuple[Streams, Tensor]:
    """Return the streams after `update` is added, and their norm."""
    if update is None:
        return streams, norm(streams.x)
    x, h = update_and_norm(streams.x, *update, norm.weight, norm.bias, norm.eps)
    return _with(streams, x), h


def _finish(streams: Streams, update: Update | None) -> Streams:
    """Return the streams after the last update is added."""
    if update is None:
        return streams
    value = update.value.float() if update.bias is None else update.value + update.bias.float()
    if update.score is not None:
        value = update.score.exp()[:, :, None] * value
    return _with(streams, streams.x + value)


def _attend(block: Block, h: Tensor, score: Tensor, by: Rotation) -> tuple[Tensor, Tensor | None]:
    """Return the attention (B,S,D) of normalised streams `h` (B,S,D) without its bias, and the bias."""
    attn, qkv = block.attn, F.linear(h, block.attn.c_attn.weight)
    heads = attention_heads(
        qkv, attn.c_attn.bias, by.cos, by.sin, score, heads=attn.n_head, biased=attn.score_bias,
        attenuated=attn.value_attenuation,
    )  # fmt: skip
    y = causal_attention(*heads)  # on an H100 torch chooses cuDNN's, the fastest there
    return F.linear(y.transpose(1, 2).flatten(2), attn.c_proj.weight), attn.c_proj.bias


def _mlp(mlp: MLP, h: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the MLP (B,S,D) of normalised streams `h` (B,S,D) without its bias, and the bias."""
    y = biased_gelu(F.linear(h, mlp.c_fc.weight), mlp.c_fc.bias, tanh=mlp.approximate == "tanh")
    return F.linear(y, mlp.c_proj.weight), mlp.c_proj.bias


def _with(streams: Streams, x: Tensor) -> Streams:
    return Streams(x, streams.score, streams.token_index, streams.tokens)


def _product_type(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products of `x`, which is autocast's if that is enabled."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
