"""The pages of one segment: where keys, values and candidate scores of live streams are kept.

A slot is the place of one stream; page p has slots p·page_size … (p+1)·page_size - 1.
Letters: S streams, N heads, H head width, K slots of one request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.model import ModelConfig

NO_CANDIDATE = torch.iinfo(torch.int32).min
"""A score below every real one, where a forced candidate stands or none: it never counts as higher."""


Slots = slice | Tensor
"""Slots of one request: a slice where its pages lie side by side, else one index a stream."""


@dataclass(frozen=True)
class Segment:
    """A run of layers between forks, over which the set of streams is the same."""

    index: int
    """The forks before it."""
    layers: range
    """Its layers; none where layer 0 forks."""
    forks_after: bool
    """Whether its streams become candidates of another fork."""

    def slot_bytes(self, config: ModelConfig, element_size: int) -> int:
        """Bytes that one stream takes: its keys and values, and its two candidate scores."""
        return 2 * len(self.layers) * config.n_embd * element_size + 2 * 4 * self.forks_after


class SegmentPages:
    """A fixed pool of pages, which requests share by count where their tokens begin alike.

    A page has holders, who keep it, and among them runners, whose requests are being served.

    On a CPU a request's pages lie side by side where that can be had: then its keys are one slice, and not picked
    stream by stream.
    """

    def __init__(self, config: ModelConfig, segment: Segment, *, pages: int, page_size: int, like: Tensor) -> None:
        """Room for `pages` pages, on the device and in the type of `like`."""
        self.segment = segment
        self.page_size = page_size
        self.pages = pages
        shape = (2, len(segment.layers), config.n_head, pages * page_size, config.head_width)
        self._stored = like.new_zeros(shape)  # zeros, since what a mask hides is still multiplied, by 0
        self._by_layer = [self._stored[:, at] for at in range(len(segment.layers))]
        self.keys = self._stored[0]
        """(layers, N, slots, H): head by head, so that a request whose pages lie side by side is a slice of each."""
        self.values = self._stored[1]
        """As `keys`."""
        self.scores = torch.empty((pages * page_size, 2), dtype=torch.int32, device=like.device)
        """(slots, 2) grid scores of the two candidates that each stream made."""
        self._holders = np.zeros(pages, np.int32)
        self._runners = np.zeros(pages, np.int32)
        self._idle = None if like.device.type == "cpu" else np.arange(pages, dtype=np.int32)
        self.free = pages
        """Pages that nobody holds; on a device the first so many of those that are idle."""
        self.live = 0
        """Pages that some running request holds."""
        self.page_bytes = page_size * segment.slot_bytes(config, like.element_size())

    def take(self, table: Numbers, rows: Indices, columns: Indices, first: int) -> None:
        """Have a free page at each of these places in a table of pages, for the running request that has the row.

        On the left of each, but for column `first`, stands another page of the same request.
        A device's kernels read by the page, wherever it lies: any page does there, and none is looked for.
        """
        assert len(rows) <= self.free, f"segment {self.segment.index}: pages taken that were not free"
        if self._idle is not None:
            table[rows, columns] = self._hold(self._idle[self.free - len(rows) : self.free])
            return
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            table[row, column] = self._hold(self._next(table[row, column - 1] if column > first else self.pages))

    def share(self, pages: Numbers) -> None:
        """Let one more running request hold these pages, which others hold."""
        self.live += self.count_idle(pages)
        self._holders[pages] += 1
        self._runners[pages] += 1

    def count_idle(self, pages: Numbers) -> int:
        """Return how many of these pages no running request holds."""
        return int(np.count_nonzero(self._runners[pages] == 0))

    def retire(self, pages: Numbers) -> None:
        """Requests that hold these pages, a page as often as it is told, run no more."""
        each, times = np.unique(pages, return_counts=True)
        self._runners[each] -= times
        self.live -= int(np.count_nonzero(self._runners[each] == 0))

    def release(self, pages: Numbers) -> None:
        """A holder that has retired, or several with none in common, let these pages go."""
        self._holders[pages] -= 1
        gone = pages[self._holders[pages] == 0]
        if self._idle is not None:
            self._idle[self.free : self.free + len(gone)] = gone
        self.free += len(gone)

    def copy(self, page: int, to: int) -> None:
        """Copy what a page holds."""
        source, target = (slice(p * self.page_size, (p + 1) * self.page_size) for p in (page, to))
        self._stored[..., target, :] = self._stored[..., source, :]
        self.scores[target] = self.scores[source]

    def slots(self, held: list[int], streams: int) -> Slots:
        """Where the first `streams` streams lie in these pages."""
        first = held[0] * self.page_size
        if held[-1] - held[0] == len(held) - 1 and held == sorted(held):
            return slice(first, first + streams)
        within = torch.arange(self.page_size, device=self.keys.device)
        pages = torch.tensor(held, device=self.keys.device)[:, None]
        return (pages * self.page_size + within).flatten()[:streams]

    def _hold(self, pages: Numbers) -> Numbers:
        """Note the one running holder of pages that had none."""
        self._holders[pages] = self._runners[pages] = 1
        self.free -= pages.size
        self.live += pages.size
        return pages

    def _next(self, last: int) -> Numbers:
        """The page after a request's last, if free; else the middle of the widest gap, to leave all room to grow."""
        if last + 1 < self.pages and self._holders[last + 1] == 0:
            return np.array(last + 1)
        idle = np.flatnonzero(self._holders == 0)
        widest = max(np.split(idle, np.flatnonzero(np.diff(idle) > 1) + 1), key=len)
        return np.array(widest[0 if len(widest) == self.pages else len(widest) // 2])

    def write(self, layer: int, slots: Tensor, keys_and_values: Tensor) -> None:
        """Store keys and values (2,N,S,H) of a layer at slots (S,)."""
        self._by_layer[layer - self.segment.layers.start].index_copy_(2, slots, keys_and_values)

    def read(self, layer: int, slots: Slots) -> Tensor:
        """Keys and values (2,N,K,H) of a layer at K slots; not a copy where these lie side by side."""
        return _at(self._by_layer[layer - self.segment.layers.start], slots, dim=2)

    def in_place(self, slots: Slots) -> tuple[Tensor, ...] | None:
        """What `read` gives for each layer where the slots lie side by side: views, all at once."""
        return _at(self._stored, slots, dim=3).unbind(1) if isinstance(slots, slice) else None

    def write_scores(self, slots: Tensor, scores: Tensor) -> None:
        """Store the grid scores (S,2), int32, of the candidates that streams at slots (S,) made."""
        self.scores.index_copy_(0, slots, scores)

    def read_scores(self, slots: Slots) -> Tensor:
        """Grid scores (2K,) of the candidates that streams at K slots made."""
        return _at(self.scores, slots, dim=0).flatten()

    def check(self, running: Sequence[Sequence[int]], retired: Sequence[Sequence[int]]) -> None:
        """Assert that pages are held by just these holders, whose pages are given."""
        name = f"segment {self.segment.index}"
        runners, others = (np.bincount([*chain(*each)], minlength=self.pages) for each in (running, retired))
        holders = runners + others
        assert np.array_equal(runners, self._runners), f"{name}: pages lost or held twice"
        assert np.array_equal(holders, self._holders), f"{name}: pages lost or held twice"
        assert self.live == np.count_nonzero(runners), f"{name}: pages miscounted"
        assert self.free == np.count_nonzero(holders == 0), f"{name}: pages miscounted"
        if self._idle is not None:
            idle = np.sort(self._idle[: self.free])
            assert np.array_equal(idle, np.flatnonzero(holders == 0)), f"{name}: held pages would be given out"


def _at(stored: Tensor, slots: Slots, dim: int) -> Tensor:
    if isinstance(slots, slice):
        return stored.narrow(dim, slots.start, slots.stop - slots.start)
    return stored.index_select(dim, slots)
