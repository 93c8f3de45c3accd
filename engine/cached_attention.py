"""Attention of new streams over the fork-state cache (SPEC.md, "Attenuated block").

Letters: R requests, S new streams of all of them, M of the one with most, K keys, N heads, H head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.packing import Packing
from engine.pages import NO_CANDIDATE, SegmentPages
from model.attention import Attend


@dataclass(frozen=True)
class SegmentView:
    """The new streams of one step in one segment, and where they and the streams before them lie in the cache."""

    pages: SegmentPages
    packing: Packing
    held: Tensor
    """(R,) streams that were there before this step."""
    new_slots: Tensor
    """(S,) where the new streams' keys and values go."""
    key_slots: Tensor | None
    """(R,K) the slots a request's streams attend to; None when nothing was held before this step."""
    mask: Tensor | None
    """(R,1,M,K) which keys each new stream sees, causal in stream order; None where every one sees all."""

    @classmethod
    def of(cls, pages: SegmentPages, rows: list[int], held: list[int], packing: Packing) -> "SegmentView":
        """The view of `packing`'s new streams for requests in these rows that held so many before."""
        total = [before + new for before, new in zip(held, packing.counts, strict=True)]
        slots = pages.slots(rows, max(total))
        before = torch.tensor(held, device=slots.device)
        new_slots = slots[packing.request, before[packing.request] + packing.place]
        if not any(held):
            return cls(pages, packing, before, new_slots, None, None)
        if len(rows) == 1 and packing.counts == [1]:
            return cls(pages, packing, before, new_slots, slots, None)
        last = before[:, None] + torch.arange(max(packing.counts), device=slots.device)  # each stream sees itself
        mask = torch.arange(max(total), device=slots.device) <= last[:, :, None]
        return cls(pages, packing, before, new_slots, slots, mask[:, None])

    def prior_scores(self) -> Tensor | None:
        """The grid scores of all candidates before this step, (R,P), `NO_CANDIDATE` where there is none."""
        if self.key_slots is None:
            return None
        there = torch.arange(self.key_slots.shape[1], device=self.held.device) < self.held[:, None]
        scores = self.pages.read_scores(self.key_slots)
        return scores.masked_fill(~there[:, :, None], NO_CANDIDATE).flatten(1).long()

    def attend(self, layer: int) -> Attend:
        """The attention of one layer: store the new keys and values, then look at all that came before."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # (1,N,S,H) each
            q, k, v = (each[0].transpose(0, 1) for each in (q, k, v))  # (S,N,H)
            self.pages.write(layer, self.new_slots, k, v)
            if self.key_slots is None:
                y = _attention(self.packing.pad(q), self.packing.pad(k), self.packing.pad(v), None, causal=True)
            else:
                keys, values = self.pages.read(layer, self.key_slots)
                y = _attention(self.packing.pad(q), keys, values, self.mask, causal=False)
            return self.packing.pack(y).transpose(0, 1)[None]

        return attend


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """(R,M,N,H) queries over (R,K,N,H) keys and values."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)
