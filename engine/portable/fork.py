"""The fork of new tokens' streams (SPEC.md, "Fork"): scores of their candidates, and vectors of the survivors.

Letters: S streams before the fork, S' after it, D model width.
"""

from torch import Tensor
from torch.nn import functional as F

from thoughtbubbles.engine.portable.block import layer_norm
from thoughtbubbles.model import ForkingBlock
from thoughtbubbles.model.forking import LOWEST_LOG_P


class CachedFork:
    """The fork before one layer."""

    def __init__(self, block: ForkingBlock) -> None:
        self._norm = block.forking_ln
        self._projection = block.forking_score.weight.float()
        self._embedding = block.fork_embedding

    def candidate_scores(self, x: Tensor, score: Tensor) -> Tensor:
        """Return the scores (S,2), float32, of each stream's fork copy and of itself kept; x (S,D), score (S,)."""
        log_p = F.logsigmoid(F.linear(layer_norm(x, self._norm).float(), self._projection))
        return log_p.clamp_(min=LOWEST_LOG_P).add_(score[:, None])

    def survivors(self, x: Tensor, candidate: Tensor) -> Tensor:
        """Return (S',D) from x (S,D) for surviving candidates (S',): a fork copy is its parent plus fork embedding."""
        is_fork = (candidate & 1 == 0)[:, None]
        return x.index_select(0, candidate >> 1).addcmul_(is_fork, self._embedding)
