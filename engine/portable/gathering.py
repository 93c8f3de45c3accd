"""Keys and values of several requests, gathered side by side for attention.

Letters: G requests, K keys of the longest, N heads, H head width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.pages import SegmentPages, Slots


class Room:
    """Memory that one gathering after the other uses, in the type that attention computes in.

    Gathering costs less than it saves: attention reads what has just come into the processor's cache, many requests'
    at once, and in float32 also where bfloat16 is stored, in which torch's attention on a CPU is slower. Without it a
    step of 8 requests takes a twentieth longer, one of 16 an eighth.
    """

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_zeros(0, dtype=torch.float32 if like.device.type == "cpu" else like.dtype)
        self.like = self._memory
        """A tensor on its device and of its type."""

    def shaped(self, *shape: int) -> Tensor:
        """The memory in a shape; what it holds is finite."""
        size = math.prod(shape)
        if len(self._memory) < size:
            self._memory = self._memory.new_zeros(2 * size)
        return self._memory[:size].view(shape)

    def clear(self) -> None:
        """Forget what was gathered: some of it may not have been finite."""
        self._memory.zero_()


class Gathering:
    """The same slots of G requests, at one layer after the other."""

    def __init__(self, pages: SegmentPages, slots: Sequence[Slots], counts: Sequence[int], room: Room) -> None:
        """Of requests with so many streams at these slots."""
        self._pages, self._slots = pages, slots
        _, heads, _, width = pages.keys.shape
        self._room = room.shaped(2, len(slots), heads, max(counts), width)
        self._places = [own.narrow(2, 0, count) for own, count in zip(self._room.unbind(1), counts, strict=True)]
        self._in_place = [pages.in_place(each) for each in slots]

    def at(self, layer: int) -> Tensor:
        """Keys and values (2,G,N,K,H) of a layer, until others are gathered; after a request's own come any."""
        i = layer - self._pages.segment.layers.start
        stored = [views[i] if views else self._pages.read(layer, slots)
                  for views, slots in zip(self._in_place, self._slots, strict=True)]  # fmt: skip
        torch._foreach_copy_(self._places, stored)
        return self._room
