"""Rows of several groups laid end to end, such as the streams of requests or of tokens, counted on the host.

Letters: G groups, S rows of all of them, M rows of the largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How S rows laid end to end divide among G groups, none of which is empty."""

    counts: Indices
    """(G,) rows of each group."""
    ends: Indices
    """(G,) end of each group's rows."""
    group: Indices
    """(S,) the group of each row."""
    place: Indices
    """(S,) its index among the group's rows."""

    @classmethod
    def of(cls, counts: Sequence[int] | Indices) -> "Layout":
        """Return the layout of groups with these numbers of rows."""
        sizes = np.asarray(counts)
        ends = sizes.cumsum()
        group = np.arange(len(sizes)).repeat(sizes)
        return cls(sizes, ends, group, np.arange(len(group)) - (ends - sizes)[group])

    def pad(self, packed: NDArray[Any], fill: int) -> NDArray[Any]:
        """Return (G,M,…) from (S,…), padded with `fill`."""
        if len(self.counts) == 1:
            return packed[None]
        padded = np.full((len(self.counts), self.counts.max(), *packed.shape[1:]), fill, packed.dtype)
        padded[self.group, self.place] = packed
        return padded

    def pack(self, padded: NDArray[Any]) -> NDArray[Any]:
        """Return (S,…) from padded (G,M,…)."""
        packed: NDArray[Any] = padded[0] if len(self.counts) == 1 else padded[self.group, self.place]
        return packed
