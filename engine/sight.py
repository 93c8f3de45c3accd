"""What one request's new streams look at: keys and values of all its streams, at one layer after the other.

They are read where they lie. To gather those of many requests for one operation, and then read them again, gained
nothing with 8 requests, and with 32 a fourteenth of a step.

Letters: M new streams, K streams in all, N heads, H head width.
"""

from torch import Tensor
from torch.nn import functional as F

from engine.hidden_keys import HiddenKeys
from engine.pages import SegmentPages, Slots


class Sight:
    """One request's view of a segment's cache, for a step."""

    def __init__(self, pages: SegmentPages, slots: Slots, new: int, total: int, hidden: HiddenKeys) -> None:
        """Of `total` streams at these slots, of which the last `new` are new."""
        self._pages, self._slots, self._dtype = pages, slots, hidden.dtype
        self._fresh = new == total
        self._mask = None if self._fresh else hidden.of(new, total)
        self._layers = pages.in_place(slots) if pages.keys.dtype == hidden.dtype else None

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """(1,M,N,H) from queries (1,N,M,H): causal in stream order, scaled by 1/sqrt(H)."""
        keys, values = self._at(layer)
        attended = F.scaled_dot_product_attention(
            queries.to(self._dtype), keys, values, self._mask, is_causal=self._fresh
        )
        return attended.transpose(1, 2)

    def _at(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (1,N,K,H) of a layer."""
        if self._layers:
            return self._layers[layer - self._pages.segment.layers.start]
        keys, values = self._pages.read(layer, self._slots).to(self._dtype)[:, None]
        return keys, values
