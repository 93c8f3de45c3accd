"""The fork operation (SPEC.md, "Fork"; paper §2.3): score, select, gather.

Letters: B batch, T tokens, S streams that arrive, C = 2S candidates, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoughtbubbles.model.selection import Selection, select

LOWEST_LOG_P = -20.0
"""log p of forking and of keeping is clamped here, before the cumulative score is added."""

Take = Callable[[Tensor, Tensor], Tensor]
"""How parents' rows are copied to the survivors: as `take_rows` does, for an index that never decreases."""


@dataclass(frozen=True)
class Streams:
    """The residual streams of a batch at one depth, tokens from left to right, a fork left of its parent."""

    x: Tensor
    """(B,S,D) the residual vectors."""
    score: Tensor
    """(B,S) float32, the cumulative score c ≤ 0."""
    token_index: Tensor
    """(B,S) int64, the token each belongs to, never decreasing; `tokens` where the row is padding."""
    tokens: int
    """T, the tokens of the longest row."""


@dataclass(frozen=True)
class Fork:
    """What one fork layer decided."""

    layer: int
    """The layer that forks, counted from 0."""
    token_index: Tensor
    """(B,S') the token of each surviving stream; T where the row is padding."""
    score: Tensor
    """(B,S') its cumulative score c; 0 in padding."""
    candidate: Tensor
    """(B,S') which of the 2S candidates it was: `2i` stream i's fork copy, `2i + 1` stream i kept; 2S in padding."""
    candidate_scores: Tensor
    """(B,2S) the scores of all candidates, the deleted too."""


def candidate_scores(x: Tensor, score: Tensor, norm: nn.LayerNorm, projection: nn.Linear) -> Tensor:
    """Cumulative scores of the candidates (B,2S), float32: stream i's fork copy at 2i, itself kept at 2i + 1.

    s = W_f · LN_f(x), log p = max(logsigmoid(s), -20), c' = c + log p; `x` (B,S,D), `score` (B,S).
    """
    with torch.autocast(x.device.type, enabled=False):  # scores stay float32 under mixed precision
        return accumulate(score, F.linear(norm(x).float(), projection.weight.float()))


def accumulate(score: Tensor, logits: Tensor) -> Tensor:
    """Scores (B,2S) of the candidates of streams with scores (B,S) and logits (B,S,2) of fork and keep; float32."""
    log_p = F.logsigmoid(logits).clamp(min=LOWEST_LOG_P)
    return (score[:, :, None] + log_p).flatten(1)


def compact(keep: Tensor, capacity: int) -> Tensor:
    """Indices of the kept candidates, in their order: (B,capacity) from (B,C) bool, padded with C."""
    batch, candidates = keep.shape
    place = torch.where(keep, keep.cumsum(1) - 1, capacity)  # the deleted all land in one place too many
    chosen = torch.full((batch, capacity + 1), candidates, device=keep.device)
    return chosen.scatter(1, place, torch.arange(candidates, device=keep.device).expand_as(place))[:, :capacity]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows (B,S',D) of x (B,S,D) at `index` (B,S')."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def gather(
    streams: Streams, candidate: Tensor, scores: Tensor, fork_embedding: Tensor, take: Take = take_rows
) -> Streams:
    """The streams of the chosen candidates (B,S'), in their order; index 2S makes padding.

    A fork copy is its parent plus the fork embedding (D); a kept stream is unchanged. `scores` is (B,2S).
    """
    present = candidate < scores.shape[1]
    parent = (candidate // 2).clamp(max=streams.x.shape[1] - 1)  # what padding holds is never looked at
    x = take(streams.x, parent)
    is_fork = present & (candidate % 2 == 0)
    x = x + is_fork[:, :, None] * fork_embedding.to(x.dtype)
    score = torch.where(present, scores.gather(1, torch.where(present, candidate, 0)), 0.0)
    token_index = torch.where(present, streams.token_index.gather(1, parent), streams.tokens)
    return Streams(x, score, token_index, streams.tokens)


def fork(
    streams: Streams, scores: Tensor, fork_embedding: Tensor, selection: Selection, take: Take = take_rows
) -> tuple[Streams, Tensor]:
    """Select among the candidates by their `scores` (B,2S) and gather the survivors; `take` may differentiate faster.

    Returns the surviving streams and which candidates they were, (B,S').
    """
    token_index = streams.token_index.repeat_interleave(2, dim=1)
    keep = select(selection, scores.detach(), token_index, streams.tokens)
    candidate = compact(keep, selection.capacity(streams.tokens, streams.x.shape[1]))
    return gather(streams, candidate, scores, fork_embedding, take), candidate
