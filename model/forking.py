"""The fork operation (SPEC.md, "Fork"; paper §2.3): score, select, gather.

Letters: B batch, T tokens, S streams before the fork, S' after it, C = 2S candidates, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoughtbubbles.model.interventions import Tap, untouched
from thoughtbubbles.model.segments import token_streams
from thoughtbubbles.model.selection import Selection, select

LOWEST_LOG_P = -20.0
"""Lower clamp of log p of fork and of keep, applied before the cumulative score is added."""

Take = Callable[[Tensor, Tensor], Tensor]
"""A function that computes `take_rows`, for an index that never decreases."""


@dataclass(frozen=True)
class Streams:
    """The residual streams of a batch at one depth: tokens from left to right, each fork left of its parent."""

    x: Tensor
    """(B,S,D) residual vectors."""
    score: Tensor
    """(B,S) float32, cumulative scores c ≤ 0."""
    token_index: Tensor
    """(B,S) int64, the token of each stream, non-decreasing; `tokens` in padding."""
    tokens: int
    """T, the length of the longest row."""

    def of_token(self, token: int, row: int = 0) -> slice:
        """Return the streams of a token in a row of the batch, forks first; the last is its original."""
        return token_streams(self.token_index[row], token)


@dataclass(frozen=True)
class Fork:
    """The survivors and the candidate scores of one fork layer."""

    layer: int
    """The layer, counted from 0."""
    token_index: Tensor
    """(B,S') the token of each survivor; T in padding."""
    score: Tensor
    """(B,S') its cumulative score c; 0 in padding."""
    candidate: Tensor
    """(B,S') its candidate number: `2i` for the fork copy of stream i, `2i + 1` for stream i kept; 2S in padding."""
    candidate_scores: Tensor
    """(B,2S) scores of all candidates, survivors and deleted."""

    def of_token(self, token: int, row: int = 0) -> slice:
        """Return the survivors of a token in a row of the batch, forks first; the last is its original."""
        return token_streams(self.token_index[row], token)


def candidate_scores(
    x: Tensor, score: Tensor, norm: nn.LayerNorm, projection: nn.Linear, tap: Tap = untouched
) -> Tensor:
    """Return the candidates' cumulative scores (B,2S) float32: stream i's fork copy at 2i, stream i kept at 2i + 1.

    s = W_f · LN_f(x), log p = max(logsigmoid(s), -20), c' = c + log p; `x` (B,S,D), `score` (B,S).
    """
    with torch.autocast(x.device.type, enabled=False):  # scores stay float32 under mixed precision
        logits = tap("fork_logits", F.linear(norm(x).float(), projection.weight.float()))
        return tap("candidate_scores", accumulate(score, logits))


def accumulate(score: Tensor, logits: Tensor) -> Tensor:
    """Return the candidates' scores (B,2S) float32, from streams' scores (B,S) and fork and keep logits (B,S,2)."""
    log_p = F.logsigmoid(logits).clamp(min=LOWEST_LOG_P)
    return (score[:, :, None] + log_p).flatten(1)


def compact(keep: Tensor, capacity: int) -> Tensor:
    """Return the indices (B,capacity) of the candidates that `keep` (B,C) marks, in order, padded with C."""
    batch, candidates = keep.shape
    column = torch.where(keep, keep.cumsum(1) - 1, capacity)  # all deleted candidates go to one extra column
    chosen = torch.full((batch, capacity + 1), candidates, device=keep.device)
    return chosen.scatter(1, column, torch.arange(candidates, device=keep.device).expand_as(column))[:, :capacity]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows (B,S',D) of x (B,S,D) at `index` (B,S')."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def gather(
    streams: Streams, candidate: Tensor, scores: Tensor, fork_embedding: Tensor, take: Take = take_rows
) -> Streams:
    """Return the streams of the candidates `candidate` (B,S'), in that order; candidate 2S becomes padding.

    A fork copy is its parent plus the fork embedding (D); a kept stream is unchanged. `scores` is (B,2S).
    """
    present = candidate < scores.shape[1]
    parent = (candidate // 2).clamp(max=streams.x.shape[1] - 1)  # values in padding are never used
    x = take(streams.x, parent)
    is_fork = present & (candidate % 2 == 0)
    x = x + is_fork[:, :, None] * fork_embedding.to(x.dtype)
    score = torch.where(present, scores.gather(1, torch.where(present, candidate, 0)), 0.0)
    token_index = torch.where(present, streams.token_index.gather(1, parent), streams.tokens)
    return Streams(x, score, token_index, streams.tokens)


def fork(
    streams: Streams,
    scores: Tensor,
    fork_embedding: Tensor,
    selection: Selection,
    take: Take = take_rows,
    *,
    overrides: Tensor | None = None,
) -> tuple[Streams, Tensor]:
    """Return the surviving streams, selected by the candidates' `scores` (B,2S), and their candidate numbers (B,S').

    `take` may be a version of `take_rows` with a faster gradient; `overrides` (B,2S) is as in `select`.
    """
    token_index = streams.token_index.repeat_interleave(2, dim=1)
    keep = select(selection, scores.detach(), token_index, streams.tokens, overrides)
    capacity = selection.capacity(streams.tokens, streams.x.shape[1])
    if overrides is not None:  # forced forks may exceed the budget, and forbidden ones leave places of it empty
        capacity = int(keep.sum(1).max())
    candidate = compact(keep, capacity)
    return gather(streams, candidate, scores, fork_embedding, take), candidate
