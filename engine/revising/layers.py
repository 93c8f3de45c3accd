"""The layers of a segment for requests without pages: what a device must offer, and the same in torch's operators.

Letters: M streams that are computed, end to end those of all requests, N heads, H head width, D model width.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from thoughtbubbles.engine.cache.buffers import Buffers
from thoughtbubbles.engine.cache.pages import Segment
from thoughtbubbles.engine.portable.block import Attend
from thoughtbubbles.engine.portable.layers import PackedModel

ROWS_AT_ONCE = 128
"""Queries that attend in one operation: a mask for all of them would be large, and most of it masked."""


class SegmentLayers(Protocol):
    """Runs layers over streams whose keys and values have no pages."""

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """(…,D) → (…,V), for `Thoughtbubbles.readout`."""

    def prepare(self) -> None:
        """Do what the first request would wait for and every engine can afford."""

    def each(
        self, segment: Segment, x: Tensor, positions: Tensor, score: Tensor, buffers: Sequence[Buffers]
    ) -> Iterator[int]:
        """Run a segment's layers over x (M,D) in place, streams at positions (M,) with scores (M,), both float32.

        Stores keys and values in the buffers of each request. Yields now and then how many streams have been computed
        in how many layers since, multiplied.
        """


class PackedLayers:
    """`SegmentLayers` by a packed model, a layer at a time."""

    def __init__(self, packed: Callable[[], PackedModel]) -> None:
        """`packed` returns the model with its present weights; it is not called before the first request."""
        self._packed = packed

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """As `SegmentLayers.head`."""
        return self._packed().head

    def prepare(self) -> None:
        """As `SegmentLayers.prepare`: packed weights take memory, which most engines never need."""

    def each(
        self, segment: Segment, x: Tensor, positions: Tensor, score: Tensor, buffers: Sequence[Buffers]
    ) -> Iterator[int]:
        """As `SegmentLayers.each`."""
        for _ in self._packed().each(segment.layers, x, positions, score, partial(_attention, buffers)):
            yield len(x)


def _attention(buffers: Sequence[Buffers], layer: int) -> Attend:
    """Return the attention of one layer: computed streams of each request to all of its streams."""
    rows = [each.computed for each in buffers]

    def attend(heads: Tensor) -> Tensor:
        each = heads.to(buffers[0].keys.dtype).permute(1, 2, 0, 3)[:, None].split(rows, dim=3)  # (3,1,N,M,H)
        parts = [_attend(into, layer, *qkv) for into, qkv in zip(buffers, each, strict=True)]
        return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)[0]

    return attend


def _attend(buffers: Buffers, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Store keys and values of the computed streams, and return their attention to all; each (1,N,M,H)."""
    at, first = layer - buffers.segment.layers.start, buffers.first
    buffers.keys[at, :, first : buffers.streams] = k[0]
    buffers.values[at, :, first : buffers.streams] = v[0]
    keys, values = buffers.keys[at : at + 1], buffers.values[at : at + 1]
    seen = []
    for rows in q.split(ROWS_AT_ONCE, dim=2):
        end = first + rows.shape[2]
        mask = _mask(first, end, q.device)
        seen.append(F.scaled_dot_product_attention(rows, keys[:, :, :end], values[:, :, :end], attn_mask=mask))
        first = end
    return torch.cat(seen, dim=2)


def _mask(first: int, end: int, device: torch.device) -> Tensor | None:
    """Return which keys before `end` the streams from `first` on may attend to (M,K); None if there is one stream."""
    return None if end - first == 1 else torch.ones(end - first, end, dtype=torch.bool, device=device).tril(first)
