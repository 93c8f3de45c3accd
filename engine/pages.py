"""The pages of one segment: where keys, values and candidate scores of live streams are kept.

A slot is the place of one stream; page p has slots p·page_size … (p+1)·page_size - 1.
Letters: S streams, N heads, H head width, R requests, K key slots.
"""

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from model import ModelConfig

NO_CANDIDATE = torch.iinfo(torch.int32).min
"""A score below every real one, where a forced candidate stands or none: it never counts as higher."""


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
    """A fixed pool of pages, and each row's page table."""

    def __init__(
        self, config: ModelConfig, segment: Segment, *, pages: int, page_size: int, rows: int, like: Tensor
    ) -> None:
        """Room for `pages` pages on the device and in the type of `like`, shared by `rows` requests."""
        self.segment = segment
        self.page_size = page_size
        self.pages = pages
        shape = (len(segment.layers), pages * page_size, config.n_head, config.head_width)
        self._keys = like.new_zeros(shape)
        self._values = like.new_zeros(shape)
        self._scores = torch.empty((pages * page_size, 2), dtype=torch.int32, device=like.device)
        self._table = torch.zeros((rows, pages), dtype=torch.int64, device=like.device)
        self._free = list(range(pages))  # a heap: low pages first keep a lone request's slots side by side
        self.page_bytes = page_size * segment.slot_bytes(config, like.element_size())

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def pages_for(self, streams: int) -> int:
        """Pages that so many streams of one request take."""
        return -(-streams // self.page_size)

    def grow(self, row: int, held: list[int], streams: int) -> None:
        """Give a row pages until it can hold `streams`; `held` is extended. The caller asked before."""
        first = len(held)
        held += [heapq.heappop(self._free) for _ in range(self.pages_for(streams) - first)]
        self._table[row, first : len(held)] = torch.tensor(held[first:], dtype=torch.int64)

    def release(self, held: list[int]) -> None:
        """Take pages back; `held` is emptied."""
        for page in held:
            heapq.heappush(self._free, page)
        held.clear()

    def slots(self, rows: list[int], streams: int) -> Tensor:
        """The slots of the first `streams` streams of each row, (R,K); beyond a row's own streams any slot."""
        pages = self._table[rows, : self.pages_for(streams)]
        slots = pages[:, :, None] * self.page_size + torch.arange(self.page_size, device=pages.device)
        return slots.flatten(1)[:, :streams]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (S,N,H) of a layer at slots (S,)."""
        self._keys[layer - self.segment.layers.start].index_copy_(0, slots, keys)
        self._values[layer - self.segment.layers.start].index_copy_(0, slots, values)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (R,K,N,H) of a layer at slots (R,K)."""
        at, flat = (
            layer - self.segment.layers.start,
            slots.flatten(),
        )  # index_select is several times quicker than [slots]
        shape = (*slots.shape, *self._keys.shape[2:])
        return self._keys[at].index_select(0, flat).view(shape), self._values[at].index_select(0, flat).view(shape)

    def write_scores(self, slots: Tensor, scores: Tensor) -> None:
        """Store the grid scores (S,2) of the candidates that streams at slots (S,) made."""
        self._scores[slots] = scores.to(torch.int32)

    def read_scores(self, slots: Tensor) -> Tensor:
        """Grid scores (R,K,2) of the candidates that streams at slots (R,K) made."""
        return self._scores.index_select(0, slots.flatten()).view(*slots.shape, 2)

    def check(self, held: list[list[int]]) -> None:
        """Assert that each page is free or held once."""
        assert sorted([*self._free, *(page for pages in held for page in pages)]) == list(range(self.pages)), (
            f"segment {self.segment.index}: pages lost or held twice"
        )
