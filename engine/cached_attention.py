"""Attention of new streams over the fork-state cache (SPEC.md, "Attenuated block").

Letters: R requests, S new streams of all of them, M of one, K keys of one, N heads, H head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from engine.fork_cache import ForkState
from engine.packing import Packing
from engine.pages import NO_CANDIDATE, SegmentPages, Slots
from model.attention import Attend


@dataclass(frozen=True)
class RequestView:
    """One request's new streams in a segment, and what they attend to."""

    new: slice
    """Its new streams among those of all requests."""
    held: int
    """Streams that were there before this step."""
    slots: Slots
    """Where its K streams lie, the new ones last."""
    mask: Tensor | None
    """(M,K) which keys each new stream sees, causal in stream order; None where it is plain causal or sees all."""

    @property
    def fresh(self) -> bool:
        """Whether there is nothing but the new streams."""
        return self.held == 0


@dataclass(frozen=True)
class SegmentView:
    """The new streams of one step in one segment, laid end to end, and where they lie in the cache."""

    pages: SegmentPages
    packing: Packing
    requests: list[RequestView]
    new_slots: Tensor
    """(S,) where the new streams' keys and values go."""

    @classmethod
    def of(cls, pages: SegmentPages, states: list[ForkState], held: list[int], device: torch.device) -> "SegmentView":
        """The view for requests that held so many streams before and have grown since."""
        requests, new_slots, start = [], [], 0
        for state, before in zip(states, held, strict=True):
            total = state.streams(pages.segment.index)
            slots = pages.slots(state.pages[pages.segment.index], total)
            new = total - before
            requests.append(RequestView(slice(start, start + new), before, slots, _mask(before, new, device)))
            new_slots.append(_from(slots, before, device))
            start += new
        packing = Packing.of([each.new.stop - each.new.start for each in requests], device)
        return cls(pages, packing, requests, torch.cat(new_slots))

    def prior_scores(self) -> Tensor | None:
        """The grid scores of all candidates before this step, (R,P), `NO_CANDIDATE` where there is none."""
        if all(each.fresh for each in self.requests):
            return None
        scores = [self.pages.read_scores(each.slots)[: each.held].flatten() for each in self.requests]
        return pad_sequence(scores, batch_first=True, padding_value=NO_CANDIDATE).long()

    def attend(self, layer: int) -> Attend:
        """The attention of one layer: store the new keys and values, then look at all that came before."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # (1,N,S,H) each
            self.pages.write(layer, self.new_slots, k[0], v[0])
            return torch.cat([self._attend_one(layer, each, q, k, v) for each in self.requests], dim=2)

        return attend

    def _attend_one(self, layer: int, request: RequestView, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(1,N,M,H) of one request."""
        q = q[:, :, request.new]
        if request.fresh:
            return F.scaled_dot_product_attention(q, k[:, :, request.new], v[:, :, request.new], is_causal=True)
        keys, values = (each[None] for each in self.pages.read(layer, request.slots))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=request.mask)


def _mask(held: int, new: int, device: torch.device) -> Tensor | None:
    if held == 0 or new == 1:
        return None
    return torch.ones(new, held + new, dtype=torch.bool, device=device).tril(held)


def _from(slots: Slots, held: int, device: torch.device) -> Tensor:
    """The slots after the first `held`, one index a stream."""
    if isinstance(slots, slice):
        return torch.arange(slots.start + held, slots.stop, device=device)
    return slots[held:]
