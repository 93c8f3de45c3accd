"""Trace which stream was forked from which (letters: T tokens, S streams)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thoughtbubbles.model import Fork


@dataclass(frozen=True)
class Lineage:
    """The origin of each stream of one sequence at one depth."""

    token: Tensor
    """(S,) the token of each stream; T in padding."""
    name: Tensor
    """(S,) a number that stays with a stream through all layers; an original has its token's."""
    parent: Tensor
    """(S,) the name of the stream it was forked from; -1 for an original."""

    @property
    def original(self) -> Tensor:
        """(S,) bool: whether the stream is its token's original."""
        return self.parent < 0


def lineage(forks: Sequence[Fork], tokens: int, device: torch.device) -> Lineage:
    """Return the lineage after the fork layers `forks` of one sequence (B = 1) of T = `tokens` tokens."""
    name = torch.arange(tokens, device=device)
    token, parent, names = name, torch.full_like(name, -1), tokens
    for fork in forks:
        candidate = fork.candidate[0]
        present = candidate < fork.candidate_scores.shape[1]
        source = torch.where(present, candidate // 2, 0)
        copy = present & (candidate % 2 == 0)
        parent = torch.where(copy, name[source], parent[source])
        name = torch.where(copy, names + torch.arange(len(copy), device=device), name[source])
        token, names = fork.token_index[0], names + len(copy)
    return Lineage(token, name, parent)
