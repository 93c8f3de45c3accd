"""Keys and values of several requests, gathered into one padded tensor for attention.

Letters: G requests, K keys of the longest, N heads, H head width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.pages import SegmentPages, Slots


class GatherBuffer:
    """Memory for one gathering at a time, in the dtype that attention computes in.

    Gathering saves more than it costs: attention reads keys that are in the processor's cache already, of many requests
    at once, and in float32 also where bfloat16 is stored, in which torch's attention on a CPU is slower. Without it a
    step of 8 requests takes a twentieth longer, one of 16 an eighth.
    """

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_zeros(0, dtype=torch.float32 if like.device.type == "cpu" else like.dtype)
        self.like = self._memory
        """A tensor on its device and of its dtype."""

    def shaped(self, *shape: int) -> Tensor:
        """Return the memory in a shape, with finite contents."""
        size = math.prod(shape)
        if len(self._memory) < size:
            self._memory = self._memory.new_zeros(2 * size)
        return self._memory[:size].view(shape)

    def clear(self) -> None:
        """Zero the memory, since some of its contents may be NaN or infinite."""
        self._memory.zero_()


class Gathering:
    """Gathers the same slots of G requests at one layer after the other."""

    def __init__(
        self, pages: SegmentPages, slots: Sequence[Slots], counts: Sequence[int], buffer: GatherBuffer
    ) -> None:
        """Prepare to gather `counts` streams of each request from its slots."""
        self._pages, self._slots = pages, slots
        _, heads, _, width = pages.keys.shape
        self._gathered = buffer.shaped(2, len(slots), heads, max(counts), width)
        self._parts = [own.narrow(2, 0, count) for own, count in zip(self._gathered.unbind(1), counts, strict=True)]
        self._in_place = [pages.in_place(each) for each in slots]

    def at(self, layer: int) -> Tensor:
        """Return keys and values (2,G,N,K,H) of a layer, valid until the next gathering. Padding is arbitrary."""
        i = layer - self._pages.segment.layers.start
        stored = [views[i] if views else self._pages.read(layer, slots)
                  for views, slots in zip(self._in_place, self._slots, strict=True)]  # fmt: skip
        torch._foreach_copy_(self._parts, stored)
        return self._gathered
