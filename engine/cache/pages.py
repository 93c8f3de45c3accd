"""The pages of one segment: keys, values and candidate scores of live streams.

A cumulative score c is within keys and values (SPEC.md, "Attenuated block"): it is a key's last channel, and a value is
multiplied by exp(c). Stored in 8 bits, c would lose what decides how much a stream counts, and small values would
vanish. So 8-bit pages have keys with 0 in the last channel, values that are not multiplied, and c beside them, in
float32; attention adds c and multiplies by exp(c). Neither keys nor values need a scale: they come from normalised
streams, and float8 (e4m3) has its full precision from 2^-6 to 448. Only kernels read 8-bit pages, and they multiply
values by sums over streams: so a head's values of a page are stored channel by channel, (H,page_size).

A slot stores one stream; page p has slots p·page_size … (p+1)·page_size - 1.
Letters: S streams, N heads, H head width, K slots of one request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from thoughtbubbles.engine.cache.huge_pages import huge_zeros
from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.model import ModelConfig

NO_CANDIDATE = torch.iinfo(torch.int32).min
"""A score below every real one, for forced candidates and padding: it never counts as higher."""


Slots = slice | Tensor
"""Slots of one request: a slice if its pages are adjacent, else one index a stream."""


@dataclass(frozen=True)
class Segment:
    """A run of layers between forks, over which the set of streams is the same."""

    index: int
    """Number of forks before it."""
    layers: range
    """Its layers; none if layer 0 forks."""
    forks_after: bool
    """Whether another fork follows, of which its streams make candidates."""

    def slot_bytes(self, config: ModelConfig, element_size: int) -> int:
        """Return the bytes of one stream: its keys and values, its two candidate scores, and c beside 8-bit keys."""
        return 2 * len(self.layers) * config.n_embd * element_size + 2 * 4 * self.forks_after + 4 * (element_size == 1)


class SegmentPages:
    """A fixed pool of pages with reference counts, for requests that share a prefix.

    A page is counted twice: for all states that have it, and for those among them whose requests run.

    On a CPU the pages of a request are adjacent if possible: then its keys are one slice and need no gathering.
    """

    def __init__(
        self, config: ModelConfig, segment: Segment, *, pages: int, page_size: int, longest: int, like: Tensor
    ) -> None:
        """Allocate `pages` pages on the device and with the dtype of `like`.

        `longest` of them are enough for the longest request at the model's ratio.
        """
        self.segment = segment
        self.page_size = page_size
        self.pages = pages
        self._longest = longest
        shape = (2, len(segment.layers), config.n_head, pages * page_size, config.head_width)
        self._stored = huge_zeros(shape, like)  # zeros: masked values are still multiplied, by 0
        self._by_layer = [self._stored[:, at] for at in range(len(segment.layers))]
        self.keys = self._stored[0]
        """(layers, N, slots, H): heads outside, so that a request with adjacent pages is a slice of each head."""
        self.values = self._stored[1]
        """As `keys`; in 8 bits those of a page are (H,page_size) in memory, instead of (page_size,H), and never NaN."""
        self.scores = torch.empty((pages * page_size, 2), dtype=torch.int32, device=like.device)
        """(slots, 2) grid scores of the two candidates that each stream made."""
        eight_bits = like.element_size() == 1
        self.cumulative = torch.zeros(pages * page_size, device=like.device) if eight_bits else None
        """(slots,) float32, the cumulative score c of each stream beside 8-bit keys and values, else None."""
        self._counts = np.zeros((2, pages), np.int32)
        self._references, self._running = self._counts
        self._idle = None if like.device.type == "cpu" else np.arange(pages, dtype=np.int32)
        self.free = pages
        """Number of pages without a reference; on a device they are the first entries of `_idle`."""
        self.live = 0
        """Number of pages that running requests use."""
        self.page_bytes = page_size * segment.slot_bytes(config, like.element_size())

    def allocate(self, table: Numbers, rows: Indices, columns: Indices, first: int) -> None:
        """Write a free page to each of these cells of a page table, for the running request of the row.

        The cell left of it has the request's previous page, unless it is in column `first`. On a device any free page
        will do, since its kernels read page by page.
        """
        assert len(rows) <= self.free, f"segment {self.segment.index}: pages taken that were not free"
        if self._idle is not None:
            table[rows, columns] = self._claim(self._idle[self.free - len(rows) : self.free])
            return
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            table[row, column] = self._claim(self._next(table[row, column - 1] if column > first else self.pages))

    def share(self, pages: Numbers) -> None:
        """Count one more running request for these pages, which others have already."""
        self.live += self.count_idle(pages)
        self._references[pages] += 1
        self._running[pages] += 1

    def count_idle(self, pages: Numbers) -> int:
        """Return how many of these pages no running request uses."""
        return int(np.count_nonzero(self._running[pages] == 0))

    def retire(self, pages: Numbers) -> None:
        """Count these pages as no longer running, once for each time that a page is listed."""
        if np.count_nonzero(self._running[pages] != 1):  # sharers may end together
            pages, times = np.unique(pages, return_counts=True)
            self._running[pages] -= times
            self.live -= self.count_idle(pages)
        else:
            self._running[pages] = 0
            self.live -= len(pages)

    def release(self, pages: Numbers) -> None:
        """Drop one reference of each of these pages, after `retire`, once for each time that a page is listed."""
        if np.count_nonzero(self._references[pages] != 1):
            pages, times = np.unique(pages, return_counts=True)
            self._references[pages] -= times
            pages = pages[self._references[pages] == 0]
        else:
            self._references[pages] = 0
        self._free(pages)

    def drop(self, pages: Numbers) -> None:
        """Retire and release these pages."""
        if np.count_nonzero(self._references[pages] != 1):  # it counts running requests too
            self.retire(pages)
            self.release(pages)
        else:
            self._counts[:, pages] = 0
            self.live -= len(pages)
            self._free(pages)

    def _free(self, pages: Numbers) -> None:
        if self._idle is not None:
            self._idle[self.free : self.free + len(pages)] = pages
        self.free += len(pages)

    def copy(self, page: int, to: int) -> None:
        """Copy the contents of a page."""
        source, target = (slice(p * self.page_size, (p + 1) * self.page_size) for p in (page, to))
        self._stored[..., target, :] = self._stored[..., source, :]
        self.scores[target] = self.scores[source]
        if self.cumulative is not None:
            self.cumulative[target] = self.cumulative[source]

    def slots(self, pages: list[int], streams: int) -> Slots:
        """Return the slots of the first `streams` streams in these pages."""
        first = pages[0] * self.page_size
        if pages[-1] - pages[0] == len(pages) - 1 and pages == sorted(pages):
            return slice(first, first + streams)
        within = torch.arange(self.page_size, device=self.keys.device)
        starts = torch.tensor(pages, device=self.keys.device)[:, None] * self.page_size
        return (starts + within).flatten()[:streams]

    def _claim(self, pages: Numbers) -> Numbers:
        """Count one running request for free pages, and return them."""
        self._references[pages] = self._running[pages] = 1
        self.free -= pages.size
        self.live += pages.size
        return pages

    def _next(self, last: int) -> Numbers:
        """Return the page after a request's last, if free; else the first with room after it for the longest request.

        Room is left for the request before to grow into. Memory is taken as it is first written, which a request waits
        for, so pages lie as close together as they can. If there is no such room, the middle of the widest gap.
        """
        if last + 1 < self.pages and self._references[last + 1] == 0:
            return np.array(last + 1)
        idle = np.flatnonzero(self._references == 0)
        gaps = np.concatenate(([0], np.flatnonzero(np.diff(idle) > 1) + 1))
        first, lengths = idle[gaps], np.diff(gaps, append=len(idle))
        before = np.where(self._running[np.maximum(first - 1, 0)] * first > 0, self._longest - 1, 0)
        roomy = lengths >= before + self._longest
        if roomy.any():
            return np.array((first + before)[roomy.argmax()])
        return np.array((first + lengths // 2)[lengths.argmax()])

    def write(self, layer: int, slots: Tensor, keys_and_values: Tensor) -> None:
        """Store keys and values (2,N,S,H) of a layer at slots (S,)."""
        self._by_layer[layer - self.segment.layers.start].index_copy_(2, slots, keys_and_values)

    def read(self, layer: int, slots: Slots) -> Tensor:
        """Return keys and values (2,N,K,H) of a layer at K slots, as a view if these are a slice."""
        return _at(self._by_layer[layer - self.segment.layers.start], slots, dim=2)

    def in_place(self, slots: Slots) -> tuple[Tensor, ...] | None:
        """Return what `read` returns for each layer, as views, if the slots are a slice."""
        return _at(self._stored, slots, dim=3).unbind(1) if isinstance(slots, slice) else None

    def write_scores(self, slots: Tensor, scores: Tensor) -> None:
        """Store the grid scores (S,2), int32, of the candidates that streams at slots (S,) made."""
        self.scores.index_copy_(0, slots, scores)

    def read_scores(self, slots: Slots) -> Tensor:
        """Return the grid scores (2K,) of the candidates that streams at K slots made."""
        return _at(self.scores, slots, dim=0).flatten()

    def check(self, running: Sequence[Sequence[int]], retained: Sequence[Sequence[int]]) -> None:
        """Assert that pages are counted right, given the pages of each running and each retained state."""
        name = f"segment {self.segment.index}"
        used, others = (np.bincount([*chain(*each)], minlength=self.pages) for each in (running, retained))
        references = used + others
        assert np.array_equal(used, self._running), f"{name}: pages lost or used twice"
        assert np.array_equal(references, self._references), f"{name}: pages lost or used twice"
        assert self.live == np.count_nonzero(used), f"{name}: pages miscounted"
        assert self.free == np.count_nonzero(references == 0), f"{name}: pages miscounted"
        if self._idle is not None:
            idle = np.sort(self._idle[: self.free])
            assert np.array_equal(idle, np.flatnonzero(references == 0)), f"{name}: pages in use counted as free"


def _at(stored: Tensor, slots: Slots, dim: int) -> Tensor:
    if isinstance(slots, slice):
        return stored.narrow(dim, slots.start, slots.stop - slots.start)
    return stored.index_select(dim, slots)
