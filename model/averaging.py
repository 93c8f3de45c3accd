"""Average each token's streams for the output (SPEC.md, "Output averaging"; paper §2.5, eq. 11 and 12).

Letters: B batch, T tokens, S streams, D model width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from thoughtbubbles.model.forking import Streams
from thoughtbubbles.model.segments import segment_counts, segment_logsumexp, segment_sum


def residual_average(streams: Streams) -> Tensor:
    """Return eq. 12, Σ_j P_j x_j over each token's streams, not divided by ΣP: (B,T,D) float32."""
    weighted = streams.score.exp()[:, :, None] * streams.x.float()
    return segment_sum(weighted, streams.token_index, streams.tokens)


def logit_average(streams: Streams, logits: Tensor) -> Tensor:
    """Return eq. 11, the log of the mixture of the streams' softmaxes weighted by P / ΣP: (B,T,V) float32.

    `logits` (B,S,V) are those of the streams.
    """
    joint = F.log_softmax(logits.float(), dim=-1) + streams.score[:, :, None]
    total = segment_logsumexp(streams.score[:, :, None], streams.token_index, streams.tokens)
    mixture = segment_logsumexp(joint, streams.token_index, streams.tokens)
    return mixture - total.clamp(min=torch.finfo(torch.float32).min)  # a padded token has no streams: -inf stays -inf


def rightmost(streams: Streams) -> Tensor:
    """Return the original of each token, not multiplied by P: (B,T,D)."""
    last = segment_counts(streams.token_index, streams.tokens).cumsum(1) - 1
    return streams.x.gather(1, last.clamp(min=0)[:, :, None].expand(-1, -1, streams.x.shape[2]))
