"""Attention of new streams over the fork-state cache (SPEC.md, "Attenuated block").

Letters: R requests, S new streams of all of them; G requests of a group, M new streams of each, K keys of the longest;
N heads, H head width, D = N·H.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cache.pages import NO_CANDIDATE, SegmentPages, Slots
from thoughtbubbles.engine.portable.attention_groups import FEW_STREAMS, Group, Masks, groups
from thoughtbubbles.engine.portable.block import Attend
from thoughtbubbles.engine.portable.gathering import GatherBuffer, Gathering


@dataclass(frozen=True)
class SegmentView:
    """The new streams of one step in one segment, laid end to end, and their slots in the cache."""

    pages: SegmentPages
    cached: list[int]
    """(R,) streams of each request before this step."""
    new: list[int]
    """(R,) new streams of each request."""
    slots: list[Slots]
    """(R,) slots of each request's streams, the new ones last."""
    new_slots: Tensor
    """(S,) slots of the new streams."""
    groups: list[tuple[Group, Gathering | None]]
    """Requests that attend together, and the gathering of their cached keys, if they have any."""
    dtype: torch.dtype
    """The dtype that attention computes in."""

    @classmethod
    def of(
        cls, pages: SegmentPages, states: list[ForkState], cached: list[int], masks: Masks, buffer: GatherBuffer
    ) -> "SegmentView":
        """Return the view for requests that had `cached` streams before and have grown since."""
        index = pages.segment.index
        totals = [state.streams(index) for state in states]
        new = [total - before for total, before in zip(totals, cached, strict=True)]
        slots = [pages.slots(state.pages(index), total) for state, total in zip(states, totals, strict=True)]
        new_slots = np.concatenate([_from(at, before) for at, before in zip(slots, cached, strict=True)])
        together: list[tuple[Group, Gathering | None]] = []
        for group in groups(cached, new, masks):
            own, counts = zip(*((slots[i], totals[i]) for i in group.requests), strict=True)
            together.append((group, None if group.fresh else Gathering(pages, own, counts, buffer)))
        return cls(
            pages, cached, new, slots, torch.from_numpy(new_slots).to(pages.keys.device), together, buffer.like.dtype
        )

    def write_scores(self, grid: Tensor) -> None:
        """Store the grid scores (S,2), int32, of the candidates that the new streams make."""
        self.pages.write_scores(self.new_slots, grid)

    def prior_scores(self) -> Tensor | None:
        """Return the grid scores of all earlier candidates (R,P) on the host, padded with `NO_CANDIDATE`."""
        if not any(self.cached):
            return None
        slots = zip(self.slots, self.cached, strict=True)
        scores = [self.pages.read_scores(_first(at, n)).cpu() for at, n in slots]
        return scores[0][None] if len(scores) == 1 else pad_sequence(scores, True, NO_CANDIDATE)

    def attend(self, layer: int) -> Attend:
        """Return the attention of one layer: store the new keys and values, then attend to all up to each stream."""

        def attend(heads: Tensor) -> Tensor:
            queries, new = heads.select(1, 0).to(self.dtype), heads[:, 1:].to(self.pages.keys.dtype)
            if len(self.new) > 1:  # NaN times 0, the weight of masked keys, would spread to other requests
                new = new.nan_to_num(0.0, 0.0, 0.0)
            self.pages.write(layer, self.new_slots, new.permute(1, 2, 0, 3))
            parts = [self._attend(layer, group, gathering, queries, new) for group, gathering in self.groups]
            if self.groups[0][0].rows is None:
                return parts[0]
            attended = parts[0].new_empty(len(queries), parts[0].shape[1])
            for (group, _), part in zip(self.groups, parts, strict=True):
                attended[group.rows] = part
            return attended

        return attend

    def _attend(self, layer: int, group: Group, gathering: Gathering | None, queries: Tensor, new: Tensor) -> Tensor:
        """(G·M,D) of a group, from the queries (S,N,H) and the new keys and values (S,2,N,H) of all requests."""
        if gathering:
            keys, values = gathering.at(layer)
        else:
            keys, values = (group.own(each).to(queries.dtype) for each in new.unbind(1))
        q = group.own(queries)
        if gathering and len(group.requests) > 1 and group.new <= FEW_STREAMS:
            attended = _by_products(q, keys, values, group.mask)
        else:
            attended = F.scaled_dot_product_attention(q, keys, values, group.mask, is_causal=group.fresh)
        return attended.transpose(1, 2).reshape(-1, queries.shape[1] * queries.shape[2])


def _by_products(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return what `scaled_dot_product_attention` returns, (G,N,M,H), by two products over all requests' heads at once.

    On a CPU torch's own multiplies head by head, each on one thread. For two queries of 8 requests that takes twice the
    time on two threads, and no less on one.
    """
    scores, scale = queries @ keys.mT, queries.shape[-1] ** -0.5
    scores = scores.mul_(scale) if mask is None else torch.add(mask, scores, alpha=scale)
    return scores.softmax(-1) @ values


def _first(slots: Slots, count: int) -> Slots:
    """Return the first `count` slots."""
    return slice(slots.start, slots.start + count) if isinstance(slots, slice) else slots[:count]


def _from(slots: Slots, count: int) -> Indices:
    """Return the slots after the first `count`, one index a stream."""
    if isinstance(slots, slice):
        return np.arange(slots.start + count, slots.stop)
    return slots[count:].numpy(force=True)
