"""Keys and values of a request that has no pages.

Letters: S streams of one segment, N heads, H head width, K streams that there is room for.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thoughtbubbles.engine.cache.pages import Segment


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """Where the keys and values of one request's streams are in a segment, in order, as `SegmentPages` stores them."""

    segment: Segment
    keys: Tensor
    """(layers,N,K,H)."""
    values: Tensor
    """(layers,N,K,H)."""
    streams: int
    """S."""
    computed: int
    """The last so many of the S are computed in this step; keys and values of the others are there."""
    cumulative: ClassVar[None] = None
    """As in `SegmentPages`: never 8 bits."""

    @property
    def first(self) -> int:
        """The first stream that is computed."""
        return self.streams - self.computed
