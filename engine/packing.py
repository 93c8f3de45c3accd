"""Rows of several requests, laid end to end or side by side.

Letters: R requests, S rows of all of them, M rows of the longest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.transfer import to_device


@dataclass(frozen=True)
class Packing:
    """How S rows laid end to end divide among R requests."""

    counts: list[int]
    """Rows of each request."""
    request: Tensor
    """(S,) the request of each row."""
    place: Tensor
    """(S,) its place among the request's rows."""
    present: Tensor
    """(R,M) whether a request has a row at this place."""
    index: Tensor
    """(R,M) where that row lies end to end; 0 where there is none."""

    @classmethod
    def of(cls, counts: list[int], device: torch.device) -> "Packing":
        """The packing of so many rows for each request."""
        sizes = to_device(counts, device)
        request = torch.repeat_interleave(torch.arange(len(counts), device=device), sizes, output_size=sum(counts))
        starts = sizes.cumsum(0) - sizes
        place = torch.arange(sum(counts), device=device) - starts[request]
        column = torch.arange(max(counts), device=device)
        present = column < sizes[:, None]
        return cls(counts, request, place, present, torch.where(present, starts[:, None] + column, 0))

    def pad(self, packed: Tensor) -> Tensor:
        """(R,M,…) side by side from (S,…) end to end; what stands where a request has no row has no meaning."""
        return packed[self.index] if len(self.counts) > 1 else packed[None]

    def pack(self, padded: Tensor) -> Tensor:
        """(S,…) end to end from (R,M,…) side by side."""
        return padded[self.request, self.place] if len(self.counts) > 1 else padded[0]
