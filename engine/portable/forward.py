"""The forward pass of new tokens over the fork-state cache: prefill and decode are the same, many tokens or one.

The host counts streams in numpy, whose operations cost less than torch's on few numbers; torch computes with them.

Letters: R requests, T new tokens of all of them, U of one, S their streams, D model width, V vocabulary, L tokens
after which one is drawn.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.engine.cache.layout import Indices, Layout
from thoughtbubbles.engine.cache.pages import NO_CANDIDATE, Segment, SegmentPages
from thoughtbubbles.engine.lookup import GUESSING
from thoughtbubbles.engine.portable.attention import SegmentView
from thoughtbubbles.engine.portable.attention_groups import Masks
from thoughtbubbles.engine.portable.fork import CachedFork
from thoughtbubbles.engine.portable.gathering import GatherBuffer
from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.engine.portable.selection import Grid, Keep, SelectionFacts, select
from thoughtbubbles.engine.scoring import last_logits
from thoughtbubbles.engine.transfer import to_device
from thoughtbubbles.model import ForkingBlock, Selection, Streams, Thoughtbubbles, budget
from thoughtbubbles.model.selection import GRID

LOWEST_SCORE = -32000.0
"""Replaces a score that is NaN: below every real one, and on the grid within int32."""


class Chunk(NamedTuple):
    """The next tokens of one request. A tuple, since one is made for every request of a step."""

    ids: list[int]
    state: ForkState
    selection: Selection
    draws: bool = False
    """Whether a token is to be drawn after them."""
    logprobs: int | None = None
    """`SamplingParams.logprobs`."""
    guesses: int = 0
    """How many of the ids, the last ones, are guesses: a token is drawn in the place of each, too."""
    prompt_logprobs: int | None = None
    """`SamplingParams.prompt_logprobs`, if the ids are of a prompt that is not reported yet."""
    following: int | None = None
    """The prompt's token after the ids, if they end before it does and it is to be scored too."""
    lanes: Sequence[int] = ()
    """(1 + guesses,) the lanes that draw, if there are guesses and the device draws."""

    @property
    def num_scored(self) -> int:
        """Number of tokens that the next one is scored after."""
        if self.prompt_logprobs is None:
            return 0
        return len(self.ids) - (self.following is None)

    @property
    def num_draws(self) -> int:
        """Number of tokens that are drawn, if any are: rows of logits."""
        return 1 + self.guesses

    @property
    def row_sizes(self) -> list[int]:
        """The tokens computed before each draw: one guess more each time."""
        return [len(self.ids) - self.guesses, *[1] * self.guesses]


@dataclass(frozen=True)
class Extended:
    """What a forward pass computed of chunks, whose tokens are laid end to end."""

    x: Tensor
    """(S,D) after the last layer."""
    score: Tensor
    """(S,) float32, the cumulative scores c."""
    counts: Indices
    """(T,) streams of each token."""
    logits: Tensor
    """(L,V) of the token that follows each chunk and, before it, in the place of each guess."""

    @property
    def streams(self) -> Streams:
        """The streams of all tokens (B = 1)."""
        return lay_out(self.x, self.score, self.counts)


def lay_out(x: Tensor, score: Tensor, counts: Indices) -> Streams:
    """Return streams x (S,D) with scores (S,) as one row; `counts` are the streams of each token (T,)."""
    token_index = to_device(np.arange(len(counts)).repeat(counts), x.device)
    return Streams(x[None], score[None], token_index[None], len(counts))


@dataclass
class ForkTally:
    """Counts of forks and deletions, for each fork layer."""

    forks: Counter[int] = field(default_factory=Counter)
    """Fork copies that survived their own layer."""
    deletions: Counter[int] = field(default_factory=Counter)
    """Streams that were deleted."""

    def add(self, layer: int, keep: Keep) -> None:
        """Count the survivors of a fork layer (S,2): fork copies and kept streams."""
        forks, kept = keep.sum(0).tolist()
        self.forks[layer] += forks
        self.deletions[layer] += len(keep) - kept

    def clear(self) -> None:
        """Reset the counts."""
        self.forks.clear()
        self.deletions.clear()


@dataclass(frozen=True)
class _Step:
    """The chunks of one step, and what follows from their sizes."""

    chunks: list[Chunk]
    layout: Layout
    """Layout of the T new tokens among R requests."""
    first: Indices
    """(R,) cached tokens before the step."""
    slots: Indices
    """(R,U) budget(t+1) - (t+1) at each new token t."""

    @classmethod
    def of(cls, chunks: list[Chunk]) -> "_Step":
        layout = Layout.of([len(chunk.ids) for chunk in chunks])
        first = np.array([chunk.state.tokens for chunk in chunks])
        kappa = np.array([[chunk.selection.max_block_size] for chunk in chunks])
        lengths = first[:, None] + np.arange(1, layout.counts.max() + 1)
        slots = budget(lengths, kappa, chunks[0].selection.block_size) - lengths
        return cls(chunks, layout, first, slots)

    def positions(self, bubbles: Layout) -> Tensor:
        """(S,) float32: t + j/q for the j-th of the q streams of token t (SPEC.md, "Positions")."""
        token = (self.first[self.layout.group] + self.layout.place)[bubbles.group]
        fraction = (bubbles.place + 1) / bubbles.counts[bubbles.group]
        return torch.from_numpy(token.astype(np.float32) + fraction.astype(np.float32))

    @property
    def read(self) -> list[int]:
        """The L tokens after which one is drawn, ascending."""
        ends = zip(self.layout.ends.tolist(), self.chunks, strict=True)
        return [token for end, chunk in ends for token in range(end - chunk.num_draws, end)]

    def broken(self, rows: "_Rows", read: list[int]) -> list[int]:
        """Return which of L logits follow a stream that is NaN or infinite; they show it only of the last token."""
        streams = (~rows.x.sum(1).isfinite()).nonzero()[:, 0].numpy(force=True)
        following: list[int] = np.unique(np.searchsorted(read, rows.bubbles.group[streams])).tolist()
        return following

    def num_cached(self, segment: Segment) -> list[int]:
        """Return the cached streams of each request in a segment."""
        return [chunk.state.streams(segment.index) for chunk in self.chunks]


@dataclass(frozen=True)
class _Rows:
    """The new tokens' streams at one depth, laid end to end."""

    x: Tensor
    """(S,D)"""
    score: Tensor
    """(S,) float32, the cumulative scores c."""
    bubbles: Layout
    """Layout of the S streams among T tokens."""


class CachedForward:
    """Runs a model under the causal rule over the fork-state cache. Only `read_weights` reads its weights."""

    max_prefill_tokens = 512
    """Most prompt tokens of a step: more would delay the requests that decode."""
    guessing = GUESSING
    """As `Executor.guessing`."""

    def __init__(self, model: Thoughtbubbles, cache: ForkCache, tally: ForkTally) -> None:
        self.model = model
        self.cache = cache
        self.tally = tally
        self._embedding = model.transformer.wte.weight.detach()
        self.read_weights()
        self._gathered = GatherBuffer(self._embedding)
        self._masks = Masks(self._gathered.like)

    def read_weights(self) -> None:
        """As `Executor.read_weights`."""
        packed, blocks = PackedModel(self.model), enumerate(self.model.blocks)
        self._forks = {i: CachedFork(block) for i, block in blocks if isinstance(block, ForkingBlock)}
        self.packed = packed
        """The layers, which other forward passes share."""

    def prepare(self) -> None:
        """Compile and capture what the first tokens would otherwise wait for: nothing."""

    def clear_gathered(self) -> None:
        """Zero the keys and values that were gathered last, since some of them may be NaN or infinite."""
        self._gathered.clear()

    def extend(self, chunks: list[Chunk]) -> Extended:
        """Compute the chunks' tokens and cache their streams. The caller has freed the pages that they need."""
        step = _Step.of(chunks)
        rows, view = self._embed(chunks), None
        for pages in self.cache.segments:
            if view is not None:
                rows = self._fork(pages.segment, rows, step, view)
            view = self._grow(pages, step, rows.bubbles)
            self._run(pages.segment, rows, step, view)
        for chunk in chunks:
            self.cache.extend(chunk.state, chunk.ids, guesses=chunk.guesses)
        counts, read = rows.bubbles.counts, step.read
        logits = last_logits(self.model, lay_out(rows.x, rows.score, counts), read, self.packed.head)
        if len(counts) > len(chunks):
            logits[step.broken(rows, read)] = torch.nan
        return Extended(rows.x, rows.score, counts, logits)

    def _embed(self, chunks: list[Chunk]) -> _Rows:
        bubbles = Layout.of([self.model.config.copies for chunk in chunks for _ in chunk.ids])
        ids = np.array([i for chunk in chunks for i in chunk.ids])[bubbles.group]
        x = self._embedding.index_select(0, self._to_device(ids))
        return _Rows(x, torch.zeros(len(x), device=x.device), bubbles)

    def _grow(self, pages: SegmentPages, step: _Step, bubbles: Layout) -> SegmentView:
        """Allocate pages for the new tokens' streams in a segment."""
        cached, sizes = step.num_cached(pages.segment), iter(bubbles.counts.tolist())
        for chunk, before in zip(step.chunks, cached, strict=True):
            _, *ends = accumulate(islice(sizes, len(chunk.ids)), initial=before)
            self.cache.grow(chunk.state, pages.segment.index, ends)
        return SegmentView.of(pages, [chunk.state for chunk in step.chunks], cached, self._masks, self._gathered)

    def _run(self, segment: Segment, rows: _Rows, step: _Step, view: SegmentView) -> None:
        """Run the layers of a segment over the rows, in place."""
        positions = step.positions(rows.bubbles).to(rows.x.device)
        self.packed.run(segment.layers, rows.x, positions, rows.score, view.attend)

    def _fork(self, into: Segment, rows: _Rows, step: _Step, view: SegmentView) -> _Rows:
        """Fork into a segment; return the streams that survive."""
        fork, originals = self._forks[into.layers.start], rows.bubbles.ends - 1
        scores = fork.candidate_scores(rows.x, rows.score).numpy(force=True)
        grid = np.rint(np.fmax(scores, LOWEST_SCORE) * GRID).astype(np.int32)
        grid[originals, 1] = NO_CANDIDATE
        view.write_scores(self._to_device(grid))
        keep = select(self._facts(grid, into, rows.bubbles, step, view), view.prior_scores)
        keep[originals, 1] = True
        self.tally.add(into.layers.start, keep)
        candidate = keep.ravel().nonzero()[0]
        sizes = np.bincount(rows.bubbles.group[candidate // 2], minlength=len(rows.bubbles.counts))
        score = self._to_device(scores.ravel()[candidate])
        return _Rows(fork.survivors(rows.x, self._to_device(candidate)), score, Layout.of(sizes))

    def _facts(self, grid: Grid, into: Segment, bubbles: Layout, step: _Step, view: SegmentView) -> SelectionFacts:
        streams = np.array(view.cached, np.int64) + np.array(view.new, np.int64)
        return SelectionFacts(
            grid=grid,
            layout=bubbles if step.slots.shape[1] == 1 else Layout.of(view.new),
            token=step.layout.place[bubbles.group],
            slots=step.slots,
            candidates=2 * streams - step.first - step.layout.counts,
            alive=np.array(step.num_cached(into)) - step.first,
        )

    def _to_device(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(self._embedding.device)
