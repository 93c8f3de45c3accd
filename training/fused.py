"""The training loss with what stands between the matrix products fused: `next_token_loss`, faster on a device.

The same function of the same weights as `Thoughtbubbles.forward` (SPEC.md, "Forward pass"); the block is laid out flat
so that a residual update and the norm that follows it, of the next block too, are one kernel.
Letters: B batch, T tokens, S streams, N heads, H head width, D model width.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import Thoughtbubbles
from model.attention import Attention, attenuate, score_channel
from model.forking import Streams
from model.rotary import Rotation, rotate
from model.selection import Selection
from model.transformer import MLP, Block, ForkingBlock
from training.data.loader import PADDING, inputs, targets

Heads = Literal["plain", "table", "triton"]


@dataclass(frozen=True, kw_only=True)
class Fusions:
    """What is fused. Each can be had alone; `ValueError` for one that there is not."""

    heads: Heads = "plain"
    """Rotation, score channel and attenuated values: the model's own, by tables that the compiler fuses, a kernel."""
    norm: bool = False
    """The residual update and the norm after it as a kernel."""
    gelu: bool = False
    """Bias and GELU as a kernel."""
    head: bool = False
    """The head's loss with its gradient, one pass over the logits."""
    head_rows: int | None = None
    """Rows of logits at a time; None: all."""
    forks: bool = False
    """Forks and averaging whose gradients are gathered, not scattered."""
    fork_scores: bool = False
    """With `forks`: the update before a fork and the fork's logits as a kernel."""
    residual: Literal["float32", "bfloat16"] = "float32"
    """Type of the residual stream; scores, sums and weights stay float32."""

    def __post_init__(self) -> None:
        if self.heads not in get_args(Heads):
            raise ValueError(f"heads must be one of {', '.join(get_args(Heads))}, not {self.heads!r}")


class Update(NamedTuple):
    """What a branch adds to the residual stream, before it is weighted."""

    value: Tensor
    """(B,S,D)."""
    bias: Tensor | None
    """(D), yet to be added."""
    score: Tensor | None
    """(B,S), by whose exp it is weighted; None: by 1."""


def fused_loss(
    model: Thoughtbubbles, windows: Tensor, ratio: float | None, noise: Tensor | None, *, padded: bool, fusions: Fusions
) -> Tensor:
    """`next_token_loss`; of a model without dropout."""
    ids, expected = windows[:, :-1], windows[:, 1:]
    lengths = (expected != PADDING).sum(1) if padded else None
    streams = model.embed(inputs(ids) if padded else ids, lengths)
    streams = _with(streams, streams.x.to(getattr(torch, fusions.residual)))
    selection = Selection.of(model.config, "blockwise", ratio, noise)
    hidden = _readout(model, _streams(model, streams, selection, fusions), fusions)
    hidden, weight, learned = hidden.flatten(0, 1), model.transformer.wte.weight, targets(expected).flatten()
    if not fusions.head:
        return F.cross_entropy(F.linear(hidden, weight).float(), learned, ignore_index=PADDING)
    from training.kernels.cross_entropy import linear_cross_entropy  # noqa: PLC0415 - where Triton is

    return linear_cross_entropy(
        hidden.to(_product_type(hidden)), weight, learned, ignore_index=PADDING, rows_at_once=fusions.head_rows
    )


def _streams(model: Thoughtbubbles, streams: Streams, selection: Selection, fusions: Fusions) -> Streams:
    """The residual streams after the last layer."""
    by, update, weighted = model.rotation(streams.token_index, streams.tokens), None, False
    for layer, block in enumerate(model.blocks):
        if isinstance(block, ForkingBlock):
            streams = _fork(block, layer, streams, update, selection, fusions)
            by, update = model.rotation(streams.token_index, streams.tokens), None
            weighted = block.residual_attenuation
        score = streams.score if weighted else None  # before the first fork P is 1
        streams, h = _update_and_norm(streams, update, block.ln_1, fusions)
        update = _attend(block, h, streams.score, by, score, fusions)
        streams, h = _update_and_norm(streams, update, block.ln_2, fusions)
        update = _mlp(block.mlp, h, score, fusions)
    return _settle(streams, update)


def _readout(model: Thoughtbubbles, streams: Streams, fusions: Fusions) -> Tensor:
    """What the head takes, (B,T,D)."""
    config = model.config
    assert config.averaging != "logit"
    if not fusions.forks or config.averaging != "residual" or config.norm_before_averaging:
        return model.readout(streams, nn.Identity())
    from training.kernels.forking import residual_average  # noqa: PLC0415

    normed: Tensor = model.transformer.ln_f(residual_average(streams, config.max_ratio).type_as(streams.x))
    return normed


def _fork(  # noqa: PLR0917
    block: ForkingBlock, layer: int, streams: Streams, update: Update | None, selection: Selection, fusions: Fusions
) -> Streams:
    """The streams that survive the fork before this block, of those that the update leaves."""
    if not fusions.forks:
        return block.fork(layer, _settle(streams, update), selection)[0]
    from training.kernels.forking import fork  # noqa: PLC0415

    if update is None or not fusions.fork_scores:
        return fork(block, _settle(streams, update), selection)
    from training.kernels.fork_scores import update_and_score  # noqa: PLC0415

    norm = block.forking_ln
    x, logits = update_and_score(
        streams.x, *update, norm.weight, norm.bias, block.forking_score.weight, norm.eps
    )  # fmt: skip
    return fork(block, _with(streams, x), selection, logits)


def _settle(streams: Streams, update: Update | None) -> Streams:
    """The streams with the update added."""
    if update is None:
        return streams
    value = update.value.float() if update.bias is None else update.value + update.bias.float()
    if update.score is not None:
        value = update.score.exp()[:, :, None] * value
    return _with(streams, (streams.x + value).to(streams.x.dtype))


def _update_and_norm(
    streams: Streams, update: Update | None, norm: nn.LayerNorm, fusions: Fusions
) -> tuple[Streams, Tensor]:
    """The streams with the update added, and the norm of them."""
    if update is None or not fusions.norm:
        streams = _settle(streams, update)
        return streams, norm(streams.x)
    from training.kernels.residual import update_and_norm  # noqa: PLC0415

    x, h = update_and_norm(streams.x, update.value, update.bias, update.score, norm.weight, norm.bias, norm.eps)
    return _with(streams, x), h


def _attend(  # noqa: PLR0917
    block: Block, h: Tensor, score: Tensor, by: Rotation, weigh: Tensor | None, fusions: Fusions
) -> Update:  # fmt: skip
    """Attention over streams whose norm is `h` (B,S,D)."""
    heads = {"plain": _plain_heads, "table": _table_heads, "triton": _triton_heads}[fusions.heads]
    y = F.scaled_dot_product_attention(*heads(block.attn, h, score, by), is_causal=True)
    return _update(block.attn.c_proj, y.transpose(1, 2).flatten(2), weigh, fusions)


def _plain_heads(attn: Attention, h: Tensor, score: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """As the model does it: (B,N,S,H) each."""
    q, k, v = attn.c_attn(h).unflatten(-1, (3, attn.n_head, -1)).permute(2, 0, 3, 1, 4)
    q, k = rotate(q, by), rotate(k, by)
    if attn.score_bias:
        q, k = score_channel(q, k, score)
    if attn.value_attenuation:
        v = attenuate(v, score)
    return q.type_as(v), k.type_as(v), v


def _table_heads(attn: Attention, h: Tensor, score: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """With whole heads times tables that have the signs and the score channel in them: nothing is cut or joined."""
    q, k, v = attn.c_attn(h).unflatten(-1, (3, attn.n_head, -1)).permute(2, 0, 3, 1, 4)
    last = (torch.arange(1, q.shape[3] + 1, device=q.device) == q.shape[3]).float() * attn.score_bias
    cos = materialised(torch.cat((by.cos, by.cos), dim=-1) * (1 - last))
    sin = materialised(torch.cat((-by.sin, by.sin), dim=-1) * (1 - last))
    q, k = (each * cos + each.roll(q.shape[3] // 2, dims=-1) * sin for each in (q, k))
    q, k = q + last, k + score[:, None, :, None] * last
    if attn.value_attenuation:
        v = attenuate(v, score)
    return q.type_as(v), k.type_as(v), v


def _triton_heads(attn: Attention, h: Tensor, score: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    from training.kernels.heads import attention_heads  # noqa: PLC0415

    return attention_heads(
        F.linear(h, attn.c_attn.weight), attn.c_attn.bias, by.cos, by.sin, score, heads=attn.n_head,
        biased=attn.score_bias, attenuated=attn.value_attenuation,
    )  # fmt: skip


@torch.library.custom_op("thoughtbubbles::materialised", mutates_args=())
def materialised(x: Tensor) -> Tensor:
    """A copy of `x` that the compiler cannot compute again in each kernel that reads it."""
    return x.clone()


materialised.register_fake(torch.empty_like)


def _mlp(mlp: MLP, h: Tensor, weigh: Tensor | None, fusions: Fusions) -> Update:
    if not fusions.gelu:
        return _update(mlp.c_proj, F.gelu(mlp.c_fc(h), approximate=mlp.approximate), weigh, fusions)
    from training.kernels.gelu import biased_gelu  # noqa: PLC0415

    y = biased_gelu(F.linear(h, mlp.c_fc.weight), mlp.c_fc.bias, tanh=mlp.approximate == "tanh")
    return _update(mlp.c_proj, y, weigh, fusions)


def _update(layer: nn.Linear, y: Tensor, weigh: Tensor | None, fusions: Fusions) -> Update:
    """The bias is left to the kernel that adds the update, which sums its gradient as well."""
    if fusions.norm:
        return Update(F.linear(y, layer.weight), layer.bias, weigh)
    return Update(layer(y), None, weigh)


def _with(streams: Streams, x: Tensor) -> Streams:
    return Streams(x, streams.score, streams.token_index, streams.tokens)


def _product_type(x: Tensor) -> torch.dtype:
    """The type that matrix products of `x` have here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
