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
from thoughtbubbles.engine.portable.gathering import Gathering, Room


@dataclass(frozen=True)
class SegmentView:
    """The new streams of one step in one segment, laid end to end, and where they lie in the cache."""

    pages: SegmentPages
    held: list[int]
    """(R,) streams of each request that were there before this step."""
    new: list[int]
    """(R,) new streams of each request."""
    slots: list[Slots]
    """(R,) where each request's streams lie, the new ones last."""
    new_slots: Tensor
    """(S,) where the new streams' keys and values go."""
    groups: list[tuple[Group, Gathering | None]]
    """Who attends together, and where they attend to more than their new streams, to what."""
    dtype: torch.dtype
    """What attention computes in."""

    @classmethod
    def of(
        cls, pages: SegmentPages, states: list[ForkState], held: list[int], masks: Masks, room: Room
    ) -> "SegmentView":
        """The view for requests that held so many streams before and have grown since."""
        index = pages.segment.index
        totals = [state.streams(index) for state in states]
        new = [total - before for total, before in zip(totals, held, strict=True)]
        slots = [pages.slots(state.pages(index), total) for state, total in zip(states, totals, strict=True)]
        new_slots = np.concatenate([_from(at, before) for at, before in zip(slots, held, strict=True)])
        together: list[tuple[Group, Gathering | None]] = []
        for group in groups(held, new, masks):
            own, counts = zip(*((slots[i], totals[i]) for i in group.requests), strict=True)
            together.append((group, None if group.fresh else Gathering(pages, own, counts, room)))
        return cls(
            pages, held, new, slots, torch.from_numpy(new_slots).to(pages.keys.device), together, room.like.dtype
        )

    def write_scores(self, grid: Tensor) -> None:
        """Store the grid scores (S,2), int32, of the candidates that the new streams make."""
        self.pages.write_scores(self.new_slots, grid)

    def prior_scores(self) -> Tensor | None:
        """On the host the grid scores of all earlier candidates, (R,P), `NO_CANDIDATE` where there is none."""
        if not any(self.held):
            return None
        held = zip(self.slots, self.held, strict=True)
        scores = [self.pages.read_scores(_first(at, n)).cpu() for at, n in held]
        return scores[0][None] if len(scores) == 1 else pad_sequence(scores, True, NO_CANDIDATE)

    def attend(self, layer: int) -> Attend:
        """The attention of one layer: store the new keys and values, then look at all that came before."""

        def attend(heads: Tensor) -> Tensor:
            queries, new = heads.select(1, 0).to(self.dtype), heads[:, 1:].to(self.pages.keys.dtype)
            if len(self.new) > 1:  # under a mask NaN is multiplied by 0, and would spoil whoever is gathered beside it
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
    """What `scaled_dot_product_attention` gives, (G,N,M,H), by two products of all requests' heads at once.

    On a CPU torch's own multiplies head by head, each on one thread: with two queries of 8 requests that takes twice
    the time on two threads, and no less on one.
    """
    scores, scale = queries @ keys.mT, queries.shape[-1] ** -0.5
    scores = scores.mul_(scale) if mask is None else torch.add(mask, scores, alpha=scale)
    return scores.softmax(-1) @ values


def _first(slots: Slots, held: int) -> Slots:
    """The slots of the first `held` streams."""
    return slice(slots.start, slots.start + held) if isinstance(slots, slice) else slots[:held]


def _from(slots: Slots, held: int) -> Indices:
    """The slots after the first `held`, one index a stream."""
    if isinstance(slots, slice):
        return np.arange(slots.start + held, slots.stop)
    return slots[held:].numpy(force=True)
