"""Compute new tokens of a batch over cached ones under the causal rule, with plain torch operators.

Under `causal` no stream of a token changes afterwards (SPEC.md, "Selection rules"), so the keys, values and candidate
scores of earlier tokens are kept. This is for `generate` of transformers; the engine has a faster cache with pages.

Letters: B batch, T new tokens, S their streams, N heads, H head width, K columns of the cache, C = 2S candidates.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from thoughtbubbles.model.attention import causal_attention
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.forking import Streams, compact, gather
from thoughtbubbles.model.segments import segment_counts
from thoughtbubbles.model.selection import NEVER, Rule, Selection, forced_candidates, on_grid, select_causal
from thoughtbubbles.model.transformer import ForkingBlock, Thoughtbubbles


def can_cache(config: ModelConfig, rule: Rule) -> bool:
    """Return whether earlier tokens may be cached: under `causal`, but not in controls that do not rank by scores."""
    return rule == "causal" and config.select_by == "score"


class StreamCache:
    """The keys, values and candidate scores of a batch, for tokens that follow under one budget.

    A row's streams in a segment are its first columns; what lies behind them is never attended to.
    """

    def __init__(self, selection: Selection, batch: int, device: torch.device) -> None:
        self.selection = selection
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        """(B,) cached tokens."""
        self._streams: dict[int, Tensor] = {}
        """(B,) cached streams, by segment."""
        self._scores: dict[int, Tensor] = {}
        """(B,C) grid scores of free candidates, deleted ones included and padded with `NEVER`, by segment."""
        self._keys: dict[int, Tensor] = {}
        """(B,N,K,H) by layer."""
        self._values: dict[int, Tensor] = {}

    def extend(self, model: Thoughtbubbles, ids: Tensor, lengths: Tensor) -> Streams:
        """Cache new tokens `ids` (B,T), of which each row has the first `lengths` (B,); return their streams."""
        streams, segment = model.embed(ids, lengths), 0
        attend = self._attend(segment, streams)
        by = model.rotation(streams.token_index, streams.tokens, self.tokens[:, None])
        for layer, block in enumerate(model.blocks):
            if isinstance(block, ForkingBlock):
                streams = self._fork(block, segment, streams)
                segment += 1
                attend = self._attend(segment, streams)
                by = model.rotation(streams.token_index, streams.tokens, self.tokens[:, None])
            x = block(streams.x, streams.score, by, attend=partial(attend, layer))
            streams = Streams(x, streams.score, streams.token_index, streams.tokens)
        self.tokens = self.tokens + lengths
        return streams

    def select_rows(self, rows: Tensor) -> None:
        """Let the rows be those with the indices `rows`, as beam search reorders and repeats them."""
        self.tokens = self.tokens.index_select(0, rows)
        for tensors in (self._streams, self._scores, self._keys, self._values):
            tensors.update({key: tensor.index_select(0, rows) for key, tensor in tensors.items()})

    def _fork(self, block: ForkingBlock, segment: int, streams: Streams) -> Streams:
        """Return the streams that survive the fork after `segment`; keep the scores of all candidates."""
        scores = block.candidate_scores(streams.x, streams.score)
        token_index = streams.token_index.repeat_interleave(2, dim=1)
        grid = on_grid(scores.detach())
        lengths = self.tokens[:, None] + torch.arange(1, streams.tokens + 1, device=grid.device)
        slots = self.selection.budget(lengths) - lengths
        prior = self._scores.get(segment, grid[:, :0])
        survived = self._streams.get(segment + 1, self.tokens) - self.tokens
        keep, _ = select_causal(grid, token_index, slots, prior, survived)
        free = (token_index < streams.tokens) & ~forced_candidates(token_index, streams.tokens)
        self._scores[segment] = torch.cat((prior, grid.masked_fill(~free, NEVER)), dim=1)
        candidate = compact(keep, max(1, int(keep.sum(1).max())))  # a chunk may be padding alone
        return gather(streams, candidate, scores, block.fork_embedding)

    def _attend(self, segment: int, streams: Streams) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """Return the attention of `segment`, a function of the layer and q, k and v (B,N,S,H) of its new streams."""
        width, device = streams.x.shape[1], streams.x.device
        start = self._streams.get(segment)
        self._streams[segment] = segment_counts(streams.token_index, streams.tokens).sum(1)
        if start is None:
            return self._attend_to_first
        self._streams[segment] += start
        column = start[:, None] + torch.arange(width, device=device)
        end = int(start.max()) + width
        mask = torch.arange(end, device=device) <= column[:, None, :, None]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys = self._keys[layer] = write(self._keys[layer], k, column, end)
            values = self._values[layer] = write(self._values[layer], v, column, end)
            return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=mask)

        return attend

    def _attend_to_first(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._keys[layer], self._values[layer] = k, v
        return causal_attention(q, k, v)


def write(cached: Tensor, new: Tensor, column: Tensor, end: int) -> Tensor:
    """Return `cached` (B,N,K,H), with at least `end` columns, and `new` (B,N,S,H) in the columns `column` (B,S).

    The tensor is written in place unless a gradient may be computed, so that a token costs no copy of all others.
    """
    if cached.shape[2] < end:
        cached = F.pad(cached, (0, 0, 0, end + end // 4 - cached.shape[2]))
    index = column[:, None, :, None].expand_as(new)
    if torch.is_grad_enabled():
        return cached.scatter(2, index, new)
    return cached.scatter_(2, index, new)
