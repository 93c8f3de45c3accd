"""Attention of new streams over the fork-state cache (SPEC.md, "Attenuated block").

Letters: R requests, S new streams of all of them; M new streams of one, K all of its streams; P candidates of prefixes;
N heads, H head width, D = N·H.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.cached_block import Attend
from engine.fork_cache import ForkState
from engine.hidden_keys import HiddenKeys
from engine.layout import Indices
from engine.pages import NO_CANDIDATE, SegmentPages, Slots
from engine.sight import Sight


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
    sights: list[Sight]
    """(R,) what each request's new streams look at."""

    @classmethod
    def of(cls, pages: SegmentPages, states: list[ForkState], held: list[int], hidden: HiddenKeys) -> "SegmentView":
        """The view for requests that held so many streams before and have grown since."""
        index = pages.segment.index
        totals = [state.streams(index) for state in states]
        new = [total - before for total, before in zip(totals, held, strict=True)]
        slots = [pages.slots(state.pages[index], total) for state, total in zip(states, totals, strict=True)]
        new_slots = np.concatenate([_from(at, before) for at, before in zip(slots, held, strict=True)])
        sights = [Sight(pages, *each, hidden) for each in zip(slots, new, totals, strict=True)]
        return cls(pages, held, new, slots, torch.from_numpy(new_slots).to(pages.keys.device), sights)

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
            self.pages.write(layer, self.new_slots, heads[:, 1:].to(self.pages.keys.dtype).permute(1, 2, 0, 3))
            queries = heads.select(1, 0).transpose(0, 1)[None].split(self.new, 2)
            parts = [sight.attend(layer, own) for sight, own in zip(self.sights, queries, strict=True)]
            attended = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            return attended.flatten(2)[0]

        return attend


def _first(slots: Slots, held: int) -> Slots:
    """The slots of the first `held` streams."""
    return slice(slots.start, slots.start + held) if isinstance(slots, slice) else slots[:held]


def _from(slots: Slots, held: int) -> Indices:
    """The slots after the first `held`, one index a stream."""
    if isinstance(slots, slice):
        return np.arange(slots.start + held, slots.stop)
    return slots[held:].numpy(force=True)
