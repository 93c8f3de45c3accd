"""The forward pass of new tokens over the fork-state cache: prefill and decode are the same, many tokens or one.

Letters: R requests, T new tokens of all of them, S their streams, C = 2S candidates, P candidates of a prefix.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from engine.cached_attention import SegmentView
from engine.fork_cache import ForkCache, ForkState
from engine.packing import Packing
from engine.pages import NO_CANDIDATE, Segment, SegmentPages
from engine.transfer import to_device
from model import ForkingBlock, Selection, Streams, Thoughtbubbles, budget
from model.forking import gather
from model.rotary import Rotation, fractions, rotation
from model.selection import forced_candidates, on_grid, select_causal


class View(Protocol):
    """The new streams of one step in one segment, laid end to end, and where they lie in the cache."""

    @property
    def pages(self) -> SegmentPages:
        """Of the segment."""

    @property
    def packing(self) -> Packing:
        """Of the new streams."""

    @property
    def new_slots(self) -> Tensor:
        """(S,) where their keys and values go."""

    def prior_scores(self) -> Tensor | None:
        """The grid scores of all candidates before this step, (R,P), `NO_CANDIDATE` where there is none."""


@dataclass(frozen=True)
class Chunk:
    """Tokens that one request goes on by."""

    ids: list[int]
    state: ForkState
    selection: Selection


@dataclass
class ForkTally:
    """What forks did, for each fork layer."""

    forks: Counter[int] = field(default_factory=Counter)
    """Fork copies that survived their own layer."""
    deletions: Counter[int] = field(default_factory=Counter)
    """Streams that arrived and were not kept."""

    def add(self, layer: int, keep: Tensor) -> None:
        """Count a fork layer's survivors, (S,2): fork copies and kept streams."""
        self.forks[layer] += int(keep[:, 0].sum())
        self.deletions[layer] += int((~keep[:, 1]).sum())


@dataclass(frozen=True)
class StepFacts:
    """What the chunks of one step have in common."""

    chunks: list[Chunk]
    packing: Packing
    """Of new tokens."""
    first: Tensor
    """(R,) tokens that were there before."""
    position: Tensor
    """(T,) each new token's place in its request."""
    slots: Tensor
    """(R,M) budget(t+1) - (t+1) at each new token t."""

    @classmethod
    def of(cls, chunks: list[Chunk], device: torch.device) -> "StepFacts":
        """The facts of these chunks, on a device."""
        packing = Packing.of([len(chunk.ids) for chunk in chunks], device)
        first, kappa = to_device(
            [[chunk.state.tokens for chunk in chunks], [chunk.selection.max_block_size for chunk in chunks]], device
        )
        lengths = first[:, None] + torch.arange(1, packing.present.shape[1] + 1, device=device)
        slots = budget(lengths, kappa[:, None], chunks[0].selection.block_size) - lengths
        return cls(chunks, packing, first, first[packing.request] + packing.place, slots)


class CachedForward:
    """Runs a model under the causal rule, keeping in a cache what later tokens need."""

    def __init__(self, model: Thoughtbubbles, cache: ForkCache, tally: ForkTally) -> None:
        self.model = model
        self.cache = cache
        self.tally = tally

    def extend(self, chunks: list[Chunk]) -> Streams:
        """The streams, after the last layer, of the chunks' tokens laid end to end (B = 1); the cache then holds them.

        The caller has made sure that the pages are there.
        """
        device = self.model.transformer.wte.weight.device
        step = StepFacts.of(chunks, device)
        streams = self.model.embed(torch.tensor([[i for chunk in chunks for i in chunk.ids]], device=device))
        alive = torch.zeros_like(step.slots)
        view = None
        for pages in self.cache.segments:
            if view is not None:
                streams, alive = self._fork(pages.segment, streams, step, view)
            view = self._grow(pages, step, alive)
            streams = self._run(streams, step, view)
        for chunk in chunks:
            self.cache.extend(chunk.state, chunk.ids)
        return streams

    def _run(self, streams: Streams, step: StepFacts, view: View) -> Streams:
        """The layers of a segment."""
        positions = step.position[streams.token_index] + fractions(streams.token_index, streams.tokens)
        by = rotation(positions, self.model.config.head_width)
        x = self._layers(streams, by, view)
        return Streams(x, streams.score, streams.token_index, streams.tokens)

    def _layers(self, streams: Streams, by: Rotation, view: View) -> Tensor:
        """The residual streams (1,S,D) after the layers of a segment, whose keys and values the cache then holds."""
        assert isinstance(view, SegmentView)
        x = streams.x
        for layer in view.pages.segment.layers:
            x = self.model.blocks[layer](x, streams.score, by, view.attend(layer))
        return x

    def _view(self, pages: SegmentPages, states: list[ForkState], held: list[int], device: torch.device) -> View:
        return SegmentView.of(pages, states, held, device)

    def _grow(self, pages: SegmentPages, step: StepFacts, alive: Tensor) -> View:
        """Take pages for a segment's new streams: the originals, and `alive` (R,M) forks up to each new token."""
        index, copies = pages.segment.index, self.model.config.copies
        held = [chunk.state.streams(index) for chunk in step.chunks]
        for chunk, first, forks in zip(step.chunks, step.first.tolist(), alive.tolist(), strict=True):
            ends = [copies * (first + i + 1) + forks[i] for i in range(len(chunk.ids))]
            self.cache.grow(chunk.state, index, ends)
        return self._view(pages, [chunk.state for chunk in step.chunks], held, step.position.device)

    def _fork(self, into: Segment, streams: Streams, step: StepFacts, view: View) -> tuple[Streams, Tensor]:
        """Fork into a segment: the survivors, and for each request its forks up to each new token, (R,M)."""
        block = self.model.blocks[into.layers.start]
        assert isinstance(block, ForkingBlock)
        scores = block.candidate_scores(streams.x, streams.score)  # (1,C)
        grid = on_grid(scores).view(-1, 2)  # (S,2)
        held = torch.tensor([c.state.streams(into.index) for c in step.chunks], device=step.first.device)
        tokens = step.slots.shape[1]
        local = torch.where(view.packing.present, view.packing.pad(step.packing.place[streams.token_index[0]]), tokens)
        keep, alive = select_causal(
            view.packing.pad(grid).flatten(1), local.repeat_interleave(2, dim=1), step.slots,
            view.prior_scores(), held - step.first,
        )  # fmt: skip
        keep = view.packing.pack(keep.view(len(step.chunks), -1, 2))  # (S,2)
        originals = forced_candidates(streams.token_index, streams.tokens)[0]
        grid[:, 1].masked_fill_(originals, NO_CANDIDATE)
        view.pages.write_scores(view.new_slots, grid)
        self.tally.add(into.layers.start, keep)
        return gather(streams, keep.flatten().nonzero().T, scores, block.fork_embedding), alive
