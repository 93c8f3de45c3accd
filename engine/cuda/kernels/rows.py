"""Which streams a step computes in one segment, and where they lie in the cache.

Letters: B places of the batch, M streams that there may be, H head width.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Span:
    """The new streams of each place, laid end to end, place after place, and all that it holds with them."""

    page_size: int
    """Streams a page holds."""
    table: Tensor
    """(lanes,pages) int32, the pages of each lane in stream order."""
    lane: Tensor
    """(B,) int32, the lane of each place; -1 where it is empty."""
    start: Tensor
    """(B,) int32, the first row of each place."""
    count: Tensor
    """(B,) int32, its rows."""
    length: Tensor
    """(B,) int32, the streams that it holds with them."""

    @property
    def places(self) -> int:
        """B."""
        return self.lane.shape[0]


@dataclass(frozen=True)
class Rows(Span):
    """The same of a decode step, known to the device alone."""

    most: int
    """The most streams that one place may have."""
    usual: int
    """The rows that are to be expected, which the work is cut for; there may be more, up to M."""
    live: Tensor
    """(1,) int32, the rows of all places."""
    slot: Tensor
    """(M,) int32, where each row's keys and values go."""
    score: Tensor
    """(M,) float32, its cumulative score c."""
    cos: Tensor
    """(M,H/2) float32, of the angles of its position."""
    sin: Tensor
    """(M,H/2) float32."""
