"""Prefill on a device: `CachedForward` in one pass that the host does not wait in.

What survives each fork is known to the device alone until the end: pages are taken for all that may, and rows beyond
those that live are left out by every kernel.
Letters: R requests, T new tokens of all of them, M streams that there may be, D model width, G segments.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from engine.cached_forward import CachedForward, Chunk, ForkTally
from engine.device_layers import Scratch, run_layers
from engine.fork_cache import ForkCache
from engine.kernels.prefill import Bubbles, Candidates, rank, spread, weigh
from engine.kernels.rows import Rows
from engine.pages import Segment
from engine.step_facts import StepFacts
from engine.transfer import to_device
from model import ForkingBlock, Streams, Thoughtbubbles
from model.rotary import BASE


@dataclass(frozen=True)
class _Pass:
    """What one segment after the other needs to know of the chunks."""

    facts: StepFacts
    request: Tensor
    """(T,) int32, each token's."""
    position: Tensor
    """(T,) int32, its place there."""
    first: Tensor
    """(R,) the first token of each request among the T."""
    last: Tensor
    """(R,) its last."""
    held: list[Tensor]
    """(R,) of each segment, the streams that were there before."""
    tables: list[Tensor]
    """(R,pages) int32 of each segment."""
    room: list[int]
    """M of each segment."""


class DeviceForward(CachedForward):
    """The same streams, with every request's work in each kernel."""

    def __init__(self, model: Thoughtbubbles, cache: ForkCache, tally: ForkTally) -> None:
        super().__init__(model, cache, tally)
        self._device = model.transformer.wte.weight.device
        exponent = torch.arange(0, model.config.head_width, 2, device=self._device, dtype=torch.float32)
        self._frequencies = BASE ** -(exponent / model.config.head_width)

    def extend(self, chunks: list[Chunk]) -> Streams:
        """As `CachedForward.extend`; rows beyond those that live are padding."""
        told = self._prepare(chunks)
        tokens = len(told.request)
        x = self.model.embed(to_device([[i for chunk in chunks for i in chunk.ids]], self._device)).x[0]
        token_index = torch.arange(tokens, device=self._device)
        bubbles = Bubbles(token_index.int(), torch.ones_like(told.request))
        rows = self._originals(told)
        scratch = Scratch.zeros(self.model.config, x, places=len(chunks), rows=max(told.room), usual=min(told.room))
        tally = torch.zeros((len(self.cache.segments), 2), dtype=torch.int64, device=self._device)
        ends = []
        for pages in self.cache.segments:
            if pages.segment.index:
                x, token_index, bubbles, rows = self._fork_into(pages.segment, told, x, bubbles, rows, tally=tally)
            run_layers(self.model, pages, x, rows, scratch.of(len(x)))
            ends.append(bubbles.start + bubbles.count)
        self._note(chunks, torch.stack(ends).tolist(), tally.tolist())
        return Streams(x[None], rows.score[None], token_index[None], tokens)

    def _prepare(self, chunks: list[Chunk]) -> _Pass:
        """Take pages for all streams that there may be, and tell the device of the chunks."""
        ledger, rows = self.cache.ledger, [chunk.state.row for chunk in chunks]
        sizes, held = np.array([len(chunk.ids) for chunk in chunks]), ledger.streams[rows].T
        most = self.cache.reserve([chunk.state for chunk in chunks], ledger.tokens[rows] + sizes)
        widths = ledger.pages[rows].max(0)
        tables = [ledger.table[rows, at : at + n] for at, n in zip(ledger.begin, widths, strict=True)]
        ends = sizes.cumsum()
        told = [ends - sizes, ends, *held, *tables]
        flat = to_device(np.concatenate([each.ravel() for each in told]), self._device)
        first, end, *rest = flat.split([each.size for each in told])
        facts = StepFacts.of(chunks, self._device)
        return _Pass(
            facts, facts.packing.request.int(), facts.position.int(), first, end - 1, rest[: len(held)],
            [each.int().view(len(chunks), -1) for each in rest[len(held) :]], (most.T - held).sum(1).tolist(),
        )  # fmt: skip

    def _rows(self, told: _Pass, segment: Segment, start: Tensor, count: Tensor, most: int) -> Rows:
        """Rows of a segment, of which only start (R,) and count (R,) of each request are known."""
        index, room = segment.index, told.room[segment.index]
        half = self.model.config.head_width // 2
        cos, sin = (torch.empty((room, half), device=self._device) for _ in range(2))
        return Rows(
            page_size=self.cache.page_size, table=told.tables[index],
            lane=torch.arange(len(start), dtype=torch.int32, device=self._device), start=start.int(), count=count.int(),
            length=(told.held[index] + count).int(), most=most, usual=room, live=count.sum(dtype=torch.int32)[None],
            slot=torch.empty(room, dtype=torch.int32, device=self._device),
            score=torch.zeros(room, device=self._device), cos=cos, sin=sin,
        )  # fmt: skip

    def _originals(self, told: _Pass) -> Rows:
        """One row a token, before the first fork."""
        most = max(told.facts.packing.counts)
        rows = self._rows(told, self.cache.segments[0].segment, told.first, told.last + 1 - told.first, most)
        size, packing = self.cache.page_size, told.facts.packing
        stream = told.held[0][packing.request] + packing.place
        rows.slot.copy_(told.tables[0][packing.request, stream // size] * size + stream % size)
        angle = (told.position[:, None] + 1.0) * self._frequencies
        rows.cos.copy_(angle.cos())
        rows.sin.copy_(angle.sin())
        return rows

    def _fork_into(
        self, into: Segment, told: _Pass, x: Tensor, bubbles: Bubbles, rows: Rows, *, tally: Tensor
    ) -> tuple[Tensor, Tensor, Bubbles, Rows]:
        """Fork on the way into a segment: its streams (M,D), their tokens (M,), and where they lie."""
        index, tokens = into.index, len(told.request)
        block, pages = self.model.blocks[into.layers.start], self.cache.segments[index - 1]
        assert isinstance(block, ForkingBlock)
        candidates = Candidates.empty(tokens, 1 << index, self._device)
        weigh(block, x, bubbles, rows, pages.scores, candidates)
        packing, slots = told.facts.packing, told.facts.slots
        rank(bubbles, told.request, rows, pages.scores, packing.pack(slots).int(), candidates)
        gained = self._within_budget(told, candidates.passing, told.held[index])
        count = gained + 1
        start = count.cumsum(0) - count
        row_start = start[told.first]
        after = Bubbles(start.int(), count.int())
        most = max(packing.counts) << index
        target = self._rows(told, into, row_start, start[told.last] + count[told.last] - row_start, most)
        out = x.new_empty((told.room[index], x.shape[1]))
        token_index = torch.full((told.room[index],), tokens, device=self._device)
        spread(block, x, bubbles, candidates, after, told.request, told.position, self._frequencies, out, token_index,
               target, tally[index])  # fmt: skip
        return out, token_index, after, target

    def _within_budget(self, told: _Pass, passing: Tensor, held: Tensor) -> Tensor:
        """Rule (b): of `passing` (T,) candidates of each token how many survive, (T,)."""
        packing, slots = told.facts.packing, told.facts.slots
        passed = torch.where(packing.present, packing.pad(passing), 0).cumsum(1)
        start = (held - told.facts.first)[:, None]
        alive = passed + torch.minimum(start, torch.cummin(slots - passed, dim=1).values)
        return packing.pack(torch.diff(alive, dim=1, prepend=start))

    def _note(self, chunks: list[Chunk], ends: list[list[int]], tally: list[list[int]]) -> None:
        """Let the cache and the tally know, now that the host does."""
        for chunk, end in zip(chunks, accumulate(len(chunk.ids) for chunk in chunks), strict=True):
            begin = end - len(chunk.ids)
            for i, told in enumerate(ends):
                before = chunk.state.streams(i) - (told[begin - 1] if begin else 0)
                self.cache.grow(chunk.state, i, [before + n for n in told[begin:end]])
            self.cache.extend(chunk.state, chunk.ids)
        for layer, (forks, deletions) in zip(self.model.config.fork_layers, tally[1:], strict=True):
            self.tally.forks[layer] += forks
            self.tally.deletions[layer] += deletions
