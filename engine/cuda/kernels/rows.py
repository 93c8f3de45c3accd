"""Which streams a step computes in one segment, and where they are in the cache.

Letters: B batch slots, M rows that there may be, H head width.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """The new streams of each batch slot, end to end in the order of the slots, and how many it has in the cache."""

    page_size: int
    """Streams in a page."""
    table: Tensor
    """(L,P) int32, the pages of each lane in stream order."""
    lane: Tensor
    """(B,) int32, the row of `table` of each slot; -1 for an empty slot."""
    start: Tensor
    """(B,) int32, the first row of each slot."""
    count: Tensor
    """(B,) int32, its rows."""
    length: Tensor
    """(B,) int32, its streams in the cache, the new ones included."""

    @property
    def batch_size(self) -> int:
        """B."""
        return self.lane.shape[0]


@dataclass(frozen=True)
class Rows(Span):
    """The same with the facts that all layers of the segment share. Only the device knows the values of the tensors."""

    most: int
    """The most streams that one slot may have."""
    usual: int
    """The number of rows that tiles are chosen for; there may be more, up to M."""
    live: Tensor
    """(1,) int32, the rows of all slots."""
    slot: Tensor
    """(M,) int32, where in the cache each row's keys and values go."""
    score: Tensor
    """(M,) float32, its cumulative score c."""
    cos: Tensor
    """(M,H/2) float32, of the rotary angles of its position."""
    sin: Tensor
    """(M,H/2) float32."""

    @classmethod
    def zeros(
        cls, lane: Tensor, table: Tensor, *, page_size: int, rows: int, most: int, usual: int, half: int,
        **known: Tensor,
    ) -> Self:  # fmt: skip
        """Return memory for `rows` rows, each with `half` rotary angles; `known` columns are as given."""
        device = lane.device
        columns = {name: torch.zeros_like(lane) for name in ("start", "count", "length") if name not in known}
        if "live" not in known:
            columns["live"] = torch.zeros(1, dtype=torch.int32, device=device)
        return cls(
            page_size=page_size, table=table, lane=lane, most=most, usual=usual, **columns, **known,
            slot=torch.zeros(rows, dtype=torch.int32, device=device), score=torch.zeros(rows, device=device),
            cos=torch.zeros((rows, half), device=device), sin=torch.zeros((rows, half), device=device),
        )  # fmt: skip
