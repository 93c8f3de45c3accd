"""Measure what streams attend to: their own forks, the rest of their bubble, other tokens (paper, figure 4).

The weights are the softmax's, score bias included, without the attenuation of values by P.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from thoughtbubbles.model import Fork
from thoughtbubbles.training.analysis.lineage import Lineage, lineage

KEYS = ("itself", "own forks", "siblings", "other originals", "other forks")
"""The stream itself; its own forks; the rest of its token's bubble; originals and forks of other tokens."""


class AttentionRow(NamedTuple):
    """The attention of one kind of query to one kind of key in one layer, averaged over heads and queries."""

    layer: int
    queries: str
    """`originals` or `forks`."""
    keys: str
    """One of `KEYS`."""
    share: float
    """Share of the attention of these queries; the five shares of a layer sum to 1."""
    per_stream: float
    """Attention to one such key, averaged over the queries that see any; NaN if none does."""
    seen_by: int
    """Number of queries that see any such key."""


@dataclass
class AttentionShares:
    """Accumulates attention over sequences; pass its `observe` to `observed_streams`."""

    tokens: int
    """T of the sequence that is observed next."""
    _queries: dict[tuple[int, str], int] = field(default_factory=dict)
    _sums: dict[tuple[int, str, str], Tensor] = field(default_factory=dict)

    def observe(self, layer: int, forks: list[Fork], weights: Tensor) -> None:
        """Add one layer of one sequence: weights (N,S,S), queries in rows."""
        mean = weights.mean(0)
        streams = lineage(forks, self.tokens, mean.device)
        kinds = key_kinds(streams)
        real = streams.token < self.tokens
        for queries, rows in (("originals", real & streams.original), ("forks", real & ~streams.original)):
            self._queries[layer, queries] = self._queries.get((layer, queries), 0) + int(rows.sum())
            for number, keys in enumerate(KEYS):
                found = _sums(mean[rows], kinds[rows] == number)
                self._sums[layer, queries, keys] = self._sums.get((layer, queries, keys), 0) + found

    def rows(self) -> list[AttentionRow]:
        """Return a row for every layer, kind of query and kind of key."""
        rows = []
        for (layer, queries, keys), sums in self._sums.items():
            share, per_stream, seen = sums.tolist()
            if count := self._queries[layer, queries]:
                each = per_stream / seen if seen else math.nan
                rows.append(AttentionRow(layer, queries, keys, share / count, each, int(seen)))
        return rows


def key_kinds(streams: Lineage) -> Tensor:
    """Return (S,S): for each query (row) and key the index in `KEYS`; -1 for keys right of the query."""
    same = streams.token[:, None] == streams.token[None]
    own = streams.name[:, None] == streams.parent[None]
    itself = torch.eye(len(streams.token), dtype=torch.bool, device=same.device)
    other = torch.where(streams.original, 3, 4)[None]
    kinds = torch.where(itself, 0, torch.where(own, 1, torch.where(same, 2, other)))
    return torch.where(torch.ones_like(same).triu(1), -1, kinds)


def _sums(weights: Tensor, chosen: Tensor) -> Tensor:
    """Return sums over queries (rows): attention to the chosen keys, the same per key, and queries that see any."""
    share = (weights * chosen).sum(1, dtype=torch.float64)
    keys = chosen.sum(1)
    return torch.stack((share.sum(), (share / keys.clamp(min=1)).sum(), (keys > 0).sum().double())).cpu()
