"""The Thoughtbubbles transformer (SPEC.md, "Forward pass"); parts first, the whole model last.

Letters: B batch, T tokens, S streams (S ≥ T), D model width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoughtbubbles.model.attention import Attend, Attention, causal_attention
from thoughtbubbles.model.averaging import logit_average, residual_average, rightmost
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.forking import Fork, Streams, candidate_scores, fork
from thoughtbubbles.model.interventions import Intervention, Tap, Taps, untouched
from thoughtbubbles.model.rotary import Rotation, fractions, rotation
from thoughtbubbles.model.selection import Rule, Selection


class MLP(nn.Module):
    """The feed-forward layer: D → 4D → GELU → D."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,S,D) from (B,S,D)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))  # type: ignore[no-any-return]


class Block(nn.Module):
    """The attenuated block (paper §2.4): both residual updates are multiplied by P = exp(c)."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.residual_attenuation = config.residual_attenuation
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, score: Tensor, by: Rotation, attend: Attend = causal_attention, tap: Tap = untouched
    ) -> Tensor:
        """Return the updated streams (B,S,D), for streams with cumulative scores (B,S)."""
        p = (score if self.residual_attenuation else torch.zeros_like(score)).exp()[:, :, None]
        update = tap("attention_out", self.attn(self.ln_1(x), score, by, attend))
        x = tap("after_attention", x + self._attenuate(p, update, x.dtype))
        update = tap("mlp_out", self.mlp(self.ln_2(x)))
        return tap("after_block", x + self._attenuate(p, update, x.dtype))

    def _attenuate(self, p: Tensor, update: Tensor, dtype: torch.dtype) -> Tensor:
        """Return P · update, multiplied in float32 and cast to the residual stream's dtype."""
        return (p * self.dropout(update)).to(dtype)  # type: ignore[no-any-return]


class ForkingBlock(Block):
    """A block with a fork before it; its parameters have the authors' names."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__(config, dropout)
        self.forking_ln = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.forking_score = nn.Linear(config.n_embd, 2, bias=False)
        self.fork_embedding = nn.Parameter(torch.empty(config.n_embd))

    def candidate_scores(self, x: Tensor, score: Tensor, tap: Tap = untouched) -> Tensor:
        """Return the cumulative scores (B,2S) of the candidates of streams (B,S,D) with scores (B,S)."""
        return candidate_scores(x, score, self.forking_ln, self.forking_score, tap)

    def fork(
        self, layer: int, streams: Streams, selection: Selection, tap: Tap = untouched, overrides: Tensor | None = None
    ) -> tuple[Streams, Fork]:
        """Return the surviving streams and the record of the fork; `overrides` (B,2S) is as in `select`."""
        streams = Streams(tap("before_fork", streams.x), streams.score, streams.token_index, streams.tokens)
        scores = self.candidate_scores(streams.x, streams.score, tap)
        streams, candidate = fork(streams, scores, self.fork_embedding, selection, overrides=overrides)
        return streams, Fork(layer, streams.token_index, streams.score, candidate, scores)


class Trunk(nn.Module):
    """The modules with weights, under the authors' names."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(
            (ForkingBlock if layer in config.fork_layers else Block)(config, dropout) for layer in range(config.n_layer)
        )
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)


class Thoughtbubbles(nn.Module):
    """The model: from token ids to logits.

    `dropout` applies in train mode only, to the embeddings and to both residual branches of every block.
    Weights are drawn as in SPEC.md, "Initialisation", from torch's global generator.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.transformer = Trunk(config, dropout)
        self.dropout = nn.Dropout(dropout)
        initialise(self)

    @property
    def blocks(self) -> list[Block]:
        """The layers in the order they run, `loops` times over; fork layers are `ForkingBlock`s."""
        return list(self.transformer.h) * self.config.loops  # type: ignore[return-value]

    @overload
    def forward(
        self, ids: Tensor, *, rule: Rule = ..., ratio: float | None = ..., lengths: Tensor | None = ...,
        noise: Tensor | None = ..., return_forks: Literal[False] = ..., intervene: Sequence[Intervention] = ...,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def forward(
        self, ids: Tensor, *, rule: Rule = ..., ratio: float | None = ..., lengths: Tensor | None = ...,
        noise: Tensor | None = ..., return_forks: Literal[True], intervene: Sequence[Intervention] = ...,
    ) -> tuple[Tensor, list[Fork]]: ...  # fmt: skip
    def forward(
        self,
        ids: Tensor,
        *,
        rule: Rule = "causal",
        ratio: float | None = None,
        lengths: Tensor | None = None,
        noise: Tensor | None = None,
        return_forks: bool = False,
        intervene: Sequence[Intervention] = (),
    ) -> Tensor | tuple[Tensor, list[Fork]]:
        """Return logits (B,T,V) of token ids (B,T); log-probabilities if `averaging` is `logit`.

        `rule` and `ratio` r (None: the model's κ / L) select the survivors; training uses `blockwise`, serving
        `causal`. `lengths` (B,), 1 … T, is the number of tokens of each row; the rest is padding. `noise` is
        `Selection.noise`. With `return_forks`, the `Fork` of each fork layer is returned too. `intervene` are applied
        in their order (`model.interventions`). Raises `ValueError` for an unknown rule, an impossible ratio, T = 0,
        `lengths` of another shape, or an intervention outside of model and batch.
        """
        streams, forks = self.streams(ids, Selection.of(self.config, rule, ratio, noise), lengths, intervene=intervene)
        logits = self.readout(streams)
        return (logits, forks) if return_forks else logits

    def streams(
        self,
        ids: Tensor,
        selection: Selection,
        lengths: Tensor | None = None,
        attend: Callable[[int, list[Fork]], Attend] | None = None,
        intervene: Sequence[Intervention] = (),
    ) -> tuple[Streams, list[Fork]]:
        """Return the residual streams after the last layer, and the `Fork` of each fork layer.

        `attend` returns the attention of a layer, given the forks up to that layer. None: `causal_attention`.
        """
        streams, forks = self.embed(ids, lengths), []
        by = self.rotation(streams.token_index, streams.tokens)
        taps = Taps(intervene, self.config, *ids.shape) if intervene else None
        for layer, block in enumerate(self.blocks):
            tap = taps.at(layer, streams.token_index, streams.tokens) if taps else untouched
            if isinstance(block, ForkingBlock):
                overrides = taps.overrides(layer, streams.token_index) if taps else None
                streams, record = block.fork(layer, streams, selection, tap, overrides)
                forks.append(record)
                by = self.rotation(streams.token_index, streams.tokens)
                tap = taps.at(layer, streams.token_index, streams.tokens) if taps else untouched
            attention = attend(layer, forks) if attend else causal_attention
            if taps:
                attention = taps.attend(layer, attention, tap)
            x, score = tap("before_block", streams.x), tap("score", streams.score)
            streams = Streams(block(x, score, by, attention, tap), score, streams.token_index, streams.tokens)
        return streams, forks

    def embed(self, ids: Tensor, lengths: Tensor | None = None) -> Streams:
        """Return one stream per token of `ids` (B,T), k in the copy-k baseline, with c = 0.

        Raises `ValueError` if T = 0, or `lengths` is not (B,). Its values are not checked: that would wait for a GPU.
        """
        (batch, tokens), copies = ids.shape, self.config.copies
        if tokens == 0:
            raise ValueError("ids must hold at least one token per row")
        token_index = (torch.arange(tokens * copies, device=ids.device) // copies).expand(batch, tokens * copies)
        if lengths is not None:
            if lengths.shape != (batch,):
                shape = tuple(lengths.shape)
                raise ValueError(f"lengths must have the shape ({batch},), a number for each row, not {shape}")
            token_index = torch.where(token_index < lengths[:, None], token_index, tokens)
        x = self.dropout(self.transformer.wte(ids))
        if copies > 1:
            x = x.repeat_interleave(copies, dim=1)
        return Streams(x, torch.zeros(token_index.shape, device=ids.device), token_index, tokens)

    def rotation(self, token_index: Tensor, tokens: int, first: Tensor | int = 0) -> Rotation:
        """Return the rotation of streams with token indices (B,S), whose first token has the position `first`."""
        positions = (token_index + first) + fractions(token_index, tokens)
        return rotation(positions, self.config.head_width)

    def readout(self, streams: Streams, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return logits (B,T,V) of streams after the last layer; for `logit` float32 log-probabilities.

        `head` maps (…,D) to (…,V); None: the tied embedding.
        """
        norm, head = self.transformer.ln_f, head or self._head
        if self.config.averaging == "logit":
            return logit_average(streams, head(norm(streams.x)))
        if self.config.averaging == "rightmost":
            return head(norm(rightmost(streams)))
        if self.config.norm_before_averaging:
            streams = Streams(norm(streams.x), streams.score, streams.token_index, streams.tokens)
            return head(residual_average(streams).type_as(streams.x))
        return head(norm(residual_average(streams).type_as(streams.x)))

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.transformer.wte.weight)


def initialise(model: Thoughtbubbles) -> None:
    """Draw the weights as in SPEC.md, "Initialisation": N(0, 0.02²), residual projections divided by sqrt(2 · n_layer).

    A looped model counts its layers `loops` times: so many updates are added to the residual stream.
    A configuration with an `initial_keep_logit` also sets the bias of the LayerNorms before the fork scores.
    """
    residual_std = 0.02 / math.sqrt(2 * model.config.n_layer * model.config.loops)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=residual_std if name.endswith("c_proj") else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, ForkingBlock):
            nn.init.normal_(module.fork_embedding, std=model.config.n_embd**-0.5)
    if model.config.initial_keep_logit:
        for block in model.blocks:
            if isinstance(block, ForkingBlock):
                _start_near_keep(block, model.config.initial_keep_logit)


@torch.no_grad()
def _start_near_keep(block: ForkingBlock, logit: float) -> None:
    """Set the bias of the LayerNorm before the scores to the shortest vector that adds 0 to fork, `logit` to keep."""
    weight = block.forking_score.weight
    if weight.device.type != "meta":  # a meta tensor has no values to invert
        block.forking_ln.bias.copy_(torch.linalg.pinv(weight.double())[:, 1] * logit)
