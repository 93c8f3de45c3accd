"""The fork-state cache: all that the causal rule lets a request keep of the tokens it has seen.

For each request and segment the cache holds, in pages of a fixed pool, the keys and values of its live streams at
every layer of the segment, and the grid scores of the two candidates that each stream made at the fork which ends the
segment, the deleted ones too. What `causal` gives a token never changes afterwards (SPEC.md, "Selection rules"), so
nothing here is ever revised, and what one request leaves serves any other that begins with the same tokens under the
same budget: whole pages are shared by count, and of one that is cut a copy is made.

Letters: R requests, G segments, U tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from operator import le

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cache.ledger import Ledger, Numbers
from thoughtbubbles.engine.cache.pages import Segment, SegmentPages
from thoughtbubbles.engine.cache.prefix_index import BLOCK, PrefixIndex
from thoughtbubbles.model import ModelConfig, Selection, budget


def segments(config: ModelConfig) -> list[Segment]:
    """The segments of a model, one more than it has fork layers."""
    bounds = [0, *config.fork_layers, config.n_layer]
    last = len(config.fork_layers)
    return [Segment(i, range(a, b), forks_after=i < last) for i, (a, b) in enumerate(pairwise(bounds))]


def most_streams(config: ModelConfig, selection: Selection, tokens: int) -> list[int]:
    """The most streams that `tokens` tokens have in each segment: every fork doubles them, under the rule's budget."""
    streams = [tokens * config.copies]
    for _ in config.fork_layers:
        streams.append(selection.capacity(tokens, streams[-1]))
    return streams


@dataclass(frozen=True)
class Prefix:
    """The beginning of a cached state that a request may start from."""

    source: ForkState
    state: ForkState
    """What of it would be shared: its tokens and streams up to the cut, and its whole pages."""


@dataclass(frozen=True)
class CacheUse:
    """How full the cache is with what running requests hold; the rest is free, or can be had for the asking."""

    streams: int
    """Live streams held, over all segments."""
    bytes: int
    """Bytes of the pages that are held."""
    ratio: float
    """Share of its pages that the fullest segment has given out, 0 … 1."""


class ForkCache:
    """Pages for every running request. Where `fits` says yes and `evict` has run, `open`, `reserve` and `grow` succeed.

    What requests leave is retained as prefixes for others, until its pages are needed.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        max_tokens: int,
        total_bytes: int,
        page_size: int,
        like: Tensor,
        requests: int = 32,
        retain: bool = True,
    ) -> None:
        """Pages of `total_bytes` together, on the device and in the type of `like`; `retain` whether to share prefixes.

        At most so many `requests` run at once, each of at most `max_tokens`.

        `ValueError` naming `cache_bytes` when not one request of `max_tokens` at the model's ratio would fit.
        """
        self.config = config
        self.total_bytes = total_bytes
        self.page_size = page_size
        streams = most_streams(config, Selection.of(config, "causal"), max_tokens)
        pages = [-(-n // page_size) for n in streams]
        slot_bytes = [s.slot_bytes(config, like.element_size()) for s in segments(config)]
        needed = sum(n * page_size * size for n, size in zip(pages, slot_bytes, strict=True))
        if total_bytes < needed:
            raise ValueError(f"cache_bytes must be at least {needed} for one request of {max_tokens} tokens")
        self.segments = [
            SegmentPages(config, s, pages=n * total_bytes // needed, page_size=page_size, like=like)
            for s, n in zip(segments(config), pages, strict=True)
        ]
        widest = [min(segment.pages, -(-(max_tokens * config.copies << i) // page_size))
                  for i, segment in enumerate(self.segments)]  # fmt: skip
        self.ledger = Ledger.empty(requests, max_tokens, widest)
        """Of the requests that run."""
        self._vacant = list(range(requests))
        self._open: dict[int, ForkState] = {}  # by row
        self._openings = count(1)
        self._retain = retain
        self._retained: dict[ForkState, None] = {}  # the longest unused first
        self._index: PrefixIndex[ForkState] = PrefixIndex()

    def find(self, selection: Selection, ids: Sequence[int]) -> Prefix | None:
        """The longest beginning of `ids` that a state holds under this budget."""
        found = self._index.find(selection.max_block_size, ids)
        if found is None:
            return None
        source, tokens = found
        whole = source.ledger.ends[source.row, :, tokens - 1].astype(np.int64) // self.page_size
        return Prefix(source, ForkState(source.ledger.cut(source.row, tokens, whole)))

    def open(self, selection: Selection, prefix: Prefix | None = None) -> ForkState:
        """A state to extend: empty, or with the tokens of a prefix, for which the pages must be there."""
        state = ForkState(self.ledger, self._vacant.pop())
        self._open[state.row] = state
        self.ledger.opening[state.row] = next(self._openings)
        self.ledger.kappa[state.row] = selection.max_block_size
        if prefix:
            self._share(prefix, state)
        return state

    def close(self, states: Sequence[ForkState]) -> None:
        """Their requests run no more. Others can have the pages from now on; until then the tokens can be found."""
        assert all(self._open.get(state.row) is state for state in states), "closed twice"
        ledger, rows = self.ledger, _rows(states)
        held = ledger.pages[rows]
        retained = np.array([self._retain and not state.spoilt for state in states], np.bool_)
        used = self._pages_for(ledger.streams[rows]) * retained[:, None]  # the others were but reserved
        for segment, pages in zip(self.segments, self._pages(rows, np.zeros_like(held), held), strict=True):
            segment.retire(pages)
        for segment, pages in zip(self.segments, self._pages(rows, used, held), strict=True):
            segment.release(pages)
        ledger.pages[rows] = used
        for state, kept in zip(states, retained.tolist(), strict=True):
            self._vacant.append(state.row)
            del self._open[state.row]
            if not kept:
                self._index.remove(state)
            elif state.tokens:
                state.ledger, state.row = ledger.cut(state.row, state.tokens, ledger.pages[state.row]), 0
                self._retained[state] = None
        ledger.vacate(rows)

    def clear(self) -> None:
        """Evict all that is retained."""
        for state in list(self._retained):
            self._drop(state)

    def pages_needed(self, selection: Selection, tokens: int, state: ForkState | None = None) -> list[int]:
        """The pages of each segment that a request may take to grow to `tokens` tokens, beyond those of `state`."""
        if state is None:
            return [-(-n // self.page_size) for n in most_streams(self.config, selection, tokens)]
        needed: list[list[int]] = self._lacking(state.ledger, _rows([state]), [tokens]).tolist()
        return needed[0]

    def all_needed(self, states: Sequence[ForkState], tokens: Sequence[int]) -> Indices:
        """(R,G) `pages_needed` of states that run, each to grow to so many tokens."""
        return self._lacking(self.ledger, _rows(states), tokens)

    def reserve(self, states: Sequence[ForkState], tokens: ArrayLike) -> Indices:
        """Take the pages that states may need to grow to so many `tokens` (R,) each, before it is known how many do.

        Returns (R,G) the streams that they are taken for.
        """
        rows = _rows(states)
        most = self._may_have(self.ledger, rows, tokens)
        self._grow(rows, most)
        return most

    def most_needed(self, requests: int, tokens: int = 2) -> list[int]:
        """Return pages of each segment that are enough for `tokens` more tokens of any so many requests."""
        most = [tokens * self.config.copies << i for i in range(len(self.segments))]
        return [requests * (-(-n // self.page_size) + 1) for n in most]  # each request's last page may be full

    def fits(self, needs: Sequence[Sequence[int]], keep: Prefix | None = None) -> bool:
        """Return whether all these needs of pages can be met together, once `evict` with the same arguments has run."""
        available = [pages.pages - pages.live for pages in self.segments]
        if keep:
            available = [n - kept for n, kept in zip(available, self._idle(keep.source), strict=True)]
        return all(map(le, _sum(needs), available))

    def evict(self, needs: Sequence[Sequence[int]], keep: Prefix | None = None) -> None:
        """Evict what is longest unused, but not the source of `keep`, until the pages of all these needs are free."""
        needed = _sum(needs)
        if self._free(needed):
            return
        for state in [state for state in self._retained if keep is None or state is not keep.source]:
            self._drop(state)
            if self._free(needed):
                return
        raise AssertionError("evicted without asking whether it fits")

    def ever_fits(self, selection: Selection, tokens: int) -> bool:
        """Whether an empty cache could hold so many tokens of a request."""
        most = most_streams(self.config, selection, tokens)
        return all(n <= pages.pages * self.page_size for pages, n in zip(self.segments, most, strict=True))

    def grow(self, state: ForkState, segment: int, ends: Sequence[int]) -> None:
        """Make room in a segment for the streams of more tokens, told as streams up to each token."""
        ledger, row, tokens = self.ledger, state.row, state.tokens
        if ledger.pages[row, segment] * self.page_size < ends[-1]:
            self._grow(_rows([state]), ends[-1] * (np.arange(len(self.segments)) == segment))
        ledger.ends[row, segment, tokens : tokens + len(ends)] = ends
        ledger.streams[row, segment] = ends[-1]

    def extend(self, state: ForkState, ids: Sequence[int], ends: Numbers | None = None) -> None:
        """Note U tokens whose streams every segment now holds; from here on they can be found.

        The streams up to each were told to `grow`, or are `ends` (G,U), whose pages were reserved.
        """
        tokens = state.tokens
        if ends is not None:
            self.ledger.ends[state.row, :, tokens : tokens + len(ids)] = ends
            self.ledger.streams[state.row] = ends[:, -1]
        self.ledger.ids[state.row, tokens : tokens + len(ids)] = ids
        self.ledger.tokens[state.row] += len(ids)
        if self._retain and tokens // BLOCK < (tokens + len(ids)) // BLOCK:
            self._index.grow(state.kappa, state)

    def append(self, rows: Indices, ids: Sequence[int], ends: Numbers) -> Indices:
        """Note a token of each open state, told by rows (R,), and the streams (R,G) that it then has in each segment.

        The pages were reserved. Returns (R,) the streams of each token after the last fork layer.
        """
        before = self.ledger.streams[rows, -1]
        self.ledger.note(rows, ids, ends)
        if self._retain:
            for row in rows[self.ledger.tokens[rows] % BLOCK == 0].tolist():
                self._index.grow(self._open[row].kappa, self._open[row])
        computed: Indices = ends[:, -1] - before
        return computed

    def use(self) -> CacheUse:
        """How full the cache is now."""
        return CacheUse(
            streams=int(self.ledger.streams.sum()),
            bytes=sum(pages.live * pages.page_bytes for pages in self.segments),
            ratio=max(pages.live / pages.pages for pages in self.segments),
        )

    def check_integrity(self) -> None:
        """Assert that pages are held by open and retained states, and by each no more than its streams need."""
        running = self._open.values()
        assert sorted([*self._open, *self._vacant]) == list(range(len(self.ledger.opening))), "rows lost or held twice"
        assert np.flatnonzero(self.ledger.opening).tolist() == sorted(self._open), "rows that nobody has"
        for i, pages in enumerate(self.segments):
            pages.check([state.pages(i) for state in running], [state.pages(i) for state in self._retained])
            for state in (*running, *self._retained):
                unused = len(state.pages(i)) - -(-state.streams(i) // self.page_size)
                assert unused == 0 or (unused > 0 and state in running), f"segment {i}: pages without streams"
                ends = [0, *state.ledger.ends[state.row, i, : state.tokens]]
                assert ends[-1] == state.streams(i), f"segment {i}: tokens missing"

    def _may_have(self, ledger: Ledger, rows: Indices, tokens: ArrayLike) -> Indices:
        """(R,G) the most streams that these rows have once they have grown to so many tokens (R,)."""
        copies = np.multiply(tokens, self.config.copies)
        limit = np.maximum(copies, budget(np.asarray(tokens), ledger.kappa[rows], self.config.block_size))
        added = copies - ledger.tokens[rows] * self.config.copies
        doubled = ledger.streams[rows] + (added[:, None] << np.arange(len(self.segments)))
        most: Indices = np.minimum(doubled, limit[:, None])
        return most

    def _lacking(self, ledger: Ledger, rows: Indices, tokens: ArrayLike) -> Indices:
        """(R,G) the pages that these rows may take to grow to so many tokens (R,)."""
        lacking: Indices = self._pages_for(self._may_have(ledger, rows, tokens)) - ledger.pages[rows]
        return lacking.clip(0)

    def _pages_for(self, streams: Indices) -> Indices:
        return -(-streams // self.page_size)

    def _pages(self, rows: Indices, since: Indices, until: Indices) -> list[Numbers]:
        """The pages of each segment that these rows have from `since` (R,G) on, before `until` (R,G)."""
        row, column, ends = self.ledger.places(rows, since, until)
        pages = self.ledger.table[row, column]
        return [pages[begin:end] for begin, end in pairwise([0, *ends])]

    def _grow(self, rows: Indices, streams: Indices) -> None:
        """Add pages to those of these rows (R,), until they hold so many streams (R,G)."""
        ledger = self.ledger
        held = ledger.pages[rows]
        until = np.maximum(held, self._pages_for(streams))
        row, column, ends = ledger.places(rows, held, until)
        for segment, first, begin, end in zip(self.segments, ledger.begin, [0, *ends], ends, strict=False):
            if end > begin:
                segment.take(ledger.table, row[begin:end], column[begin:end], first)
        ledger.pages[rows] = until

    def _free(self, needed: Sequence[int]) -> bool:
        """Return whether so many pages of each segment are free now."""
        return all(map(le, needed, [pages.free for pages in self.segments]))

    def _idle(self, state: ForkState) -> list[int]:
        """Return the number of a state's pages in each segment that no running request has."""
        return [pages.count_idle(state.ledger.held(state.row, i)) for i, pages in enumerate(self.segments)]

    def _share(self, prefix: Prefix, state: ForkState) -> None:
        """Begin a state with a prefix's streams: whole pages shared, the one that was cut copied."""
        self.ledger.paste(state.row, prefix.state.ledger)
        for i, segment in enumerate(self.segments):
            segment.share(prefix.state.ledger.held(0, i))
        self._grow(_rows([state]), self.ledger.streams[[state.row]])
        for i, segment in enumerate(self.segments):
            whole, own = len(prefix.state.pages(i)), state.pages(i)
            if len(own) > whole:
                segment.copy(prefix.source.pages(i)[whole], to=own[whole])
        self._index.grow(state.kappa, state)
        if prefix.source in self._retained:  # used again, so the last to be evicted
            self._retained[prefix.source] = self._retained.pop(prefix.source)

    def _drop(self, state: ForkState) -> None:
        del self._retained[state]
        self._index.remove(state)
        for i, segment in enumerate(self.segments):
            segment.release(state.ledger.held(state.row, i))


def _rows(states: Sequence[ForkState]) -> Indices:
    return np.array([state.row for state in states], np.int64)


def _sum(needs: Sequence[Sequence[int]]) -> list[int]:
    """Return the pages of each segment that all of these need together."""
    return [sum(need) for need in zip(*needs, strict=True)]
