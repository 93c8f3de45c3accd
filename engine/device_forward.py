"""Prefill on a device: `CachedForward` with the layers as kernels, every request's streams at once.

Letters: R requests, S new streams of all of them, P candidates of a prefix.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from engine.cached_forward import CachedForward, View
from engine.device_layers import Scratch, run_layers
from engine.fork_cache import ForkState
from engine.kernels.rows import Rows
from engine.packing import Packing
from engine.pages import NO_CANDIDATE, SegmentPages
from engine.transfer import to_device
from model import Streams
from model.rotary import Rotation


@dataclass(frozen=True)
class DeviceView:
    """The new streams of one step in one segment, laid end to end, and where they lie in the cache."""

    pages: SegmentPages
    packing: Packing
    table: Tensor
    """(R,pages) the pages of each request."""
    held: Tensor
    """(R,) streams that each had before."""
    most_held: int
    """The most that any of them had."""
    new_slots: Tensor
    """(S,) where the new streams' keys and values go."""

    @classmethod
    def of(cls, pages: SegmentPages, states: list[ForkState], held: list[int], device: torch.device) -> Self:
        """The view for requests that held so many streams before and have grown since."""
        index, size = pages.segment.index, pages.page_size
        counts = [state.streams(index) - before for state, before in zip(states, held, strict=True)]
        width = max(len(state.pages[index]) for state in states)
        table = to_device([state.pages[index] + [0] * (width - len(state.pages[index])) for state in states], device)
        packing, before = Packing.of(counts, device), to_device(held, device)
        stream = before[packing.request] + packing.place
        slots = table[packing.request, stream // size] * size + stream % size
        return cls(pages, packing, table, before, max(held), slots)

    def prior_scores(self) -> Tensor | None:
        """The grid scores of all candidates before this step, (R,P), `NO_CANDIDATE` where there is none."""
        if self.most_held == 0:
            return None
        size = self.pages.page_size
        stream = torch.arange(self.most_held, device=self.new_slots.device)
        slots = self.table[:, stream // size] * size + stream % size
        scores = self.pages.read_scores(slots.flatten()).view(*slots.shape, 2)
        return torch.where((stream < self.held[:, None])[:, :, None], scores, NO_CANDIDATE).flatten(1).long()

    def rows(self, score: Tensor, by: Rotation) -> Rows:
        """The new streams as kernels know them, with their cumulative scores (S,) and their angles."""
        device, counts = score.device, self.packing.counts
        start, count = to_device([[0, *accumulate(counts[:-1])], counts], device).int()
        return Rows(
            page_size=self.pages.page_size,
            table=self.table.int(),
            lane=torch.arange(len(counts), dtype=torch.int32, device=device),
            start=start,
            count=count,
            length=self.held.int() + count,
            most=max(counts),
            live=torch.full((1,), len(score), dtype=torch.int32, device=device),
            slot=self.new_slots.int(),
            score=score,
            cos=by.cos[0, 0],
            sin=by.sin[0, 0],
        )


class DeviceForward(CachedForward):
    """The same streams, from fewer and larger pieces of work."""

    def _view(self, pages: SegmentPages, states: list[ForkState], held: list[int], device: torch.device) -> View:
        return DeviceView.of(pages, states, held, device)

    def _layers(self, streams: Streams, by: Rotation, view: View) -> Tensor:
        assert isinstance(view, DeviceView)
        x, config = streams.x[0].contiguous(), self.model.config
        rows = view.rows(streams.score[0].contiguous(), by)
        scratch = Scratch.empty(config, x, rows.places, len(x))
        run_layers(self.model, view.pages, x, rows, scratch)
        return x[None]
