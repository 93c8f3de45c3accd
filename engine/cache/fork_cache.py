"""The fork-state cache: what later tokens of a request need of its earlier ones under the causal rule.

For each request and segment the cache has pages from a fixed pool. They store the keys and values of its live streams
at every layer of the segment, and the grid scores of both candidates that each stream made at the fork after the
segment; scores of deleted candidates are kept as well, hence *fork-state* cache. The streams of a token never change
under `causal` (SPEC.md, "Selection rules"), so nothing here is revised, and a request can start from the cached prefix
of any other with the same first tokens and the same budget: whole pages are shared by reference count, a page that the
prefix ends in is copied.

Letters: R requests, G segments, U tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, pairwise
from operator import le

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.engine.cache.layout import Indices, Layout
from thoughtbubbles.engine.cache.ledger import Ledger, Numbers
from thoughtbubbles.engine.cache.pages import Segment, SegmentPages
from thoughtbubbles.engine.cache.prefix_index import BLOCK, PrefixIndex
from thoughtbubbles.model import ModelConfig, Selection, budget


def segments(config: ModelConfig) -> list[Segment]:
    """Return the segments of a model, one more than it has fork layers."""
    bounds = [0, *config.fork_layers, config.n_layer]
    last = len(config.fork_layers)
    return [Segment(i, range(a, b), forks_after=i < last) for i, (a, b) in enumerate(pairwise(bounds))]


def most_streams(config: ModelConfig, selection: Selection, tokens: int) -> list[int]:
    """Return the most streams of `tokens` tokens in each segment: every fork doubles them, up to the rule's budget."""
    return [*_most_streams(selection, tokens, config.copies, len(config.fork_layers))]


@lru_cache(maxsize=4096)
def _most_streams(selection: Selection, tokens: int, copies: int, forks: int) -> tuple[int, ...]:
    """Return `most_streams`. Asked a few times of every request, and many requests have the same lengths."""
    first = tokens * copies
    most = selection.capacity(tokens, first << forks)
    return (first, *[min(first << i, most) for i in range(1, forks + 1)])


@dataclass(frozen=True)
class Prefix:
    """A prefix of a cached state that a request may start from."""

    source: ForkState
    state: ForkState
    """The part of it to share: tokens and streams up to the cut, and whole pages."""


@dataclass(frozen=True)
class CacheUse:
    """How much of the cache running requests use; the rest is free or evictable."""

    streams: int
    """Live streams cached for running requests, over all segments."""
    bytes: int
    """Bytes of their pages."""
    ratio: float
    """Share of pages in use in the fullest segment, 0 … 1."""


class ForkCache:
    """Pages for every running request. After `make_room` was true, `open`, `reserve` and `grow` succeed.

    States of finished requests are retained as prefixes for others until their pages are needed.
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
        """Allocate pages of `total_bytes` together, on the device and with the dtype of `like`.

        At most `requests` requests run at once, each of at most `max_tokens` tokens. `retain` turns on prefix caching.

        Raises `ValueError` naming `cache_bytes` if one request of `max_tokens` at the model's ratio does not fit.
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
            SegmentPages(config, s, pages=n * total_bytes // needed, page_size=page_size, longest=n, like=like)
            for s, n in zip(segments(config), pages, strict=True)
        ]
        widest = [min(segment.pages, -(-(max_tokens * config.copies << i) // page_size))
                  for i, segment in enumerate(self.segments)]  # fmt: skip
        self.ledger = Ledger.empty(requests, max_tokens, widest)
        """One row for each running request."""
        self._vacant = list(range(requests))
        self._open: dict[int, ForkState] = {}  # by row
        self._generations = count(1)
        self._retain = retain
        self._retained: dict[ForkState, None] = {}  # least recently used first
        self._index: PrefixIndex[ForkState] = PrefixIndex()

    @property
    def eight_bits(self) -> bool:
        """Whether keys and values are stored in 8 bits."""
        return self.segments[0].cumulative is not None

    def find(self, selection: Selection, ids: Sequence[int]) -> Prefix | None:
        """Return the longest cached prefix of `ids` under this budget, or None."""
        found = self._index.find(selection.max_block_size, ids)
        if found is None:
            return None
        source, tokens = found
        whole = source.ledger.ends[source.row, :, tokens - 1].astype(np.int64) // self.page_size
        return Prefix(source, ForkState(source.ledger.cut(source.row, tokens, whole)))

    def open(self, selection: Selection, prefix: Prefix | None = None) -> ForkState:
        """Return a new state: empty, or with the tokens of a prefix, for which pages must be free."""
        state = ForkState(self.ledger, self._vacant.pop())
        self._open[state.row] = state
        self.ledger.generation[state.row] = next(self._generations)
        self.ledger.kappa[state.row] = selection.max_block_size
        if prefix:
            self._share(prefix, state)
        return state

    def close(self, states: Sequence[ForkState]) -> None:
        """Close the states of requests that no longer run. Retain them as prefixes until their pages are evicted."""
        assert all(self._open.get(state.row) is state for state in states), "closed twice"
        ledger, rows = self.ledger, _rows(states)
        retained = [self._retain and not state.spoilt for state in states]
        used = self._pages_for(ledger.streams.take(rows, 0)) * np.array(retained, np.bool_)[:, None]
        if any(retained):
            for segment, pages in zip(self.segments, self._pages(rows, np.zeros_like(used), used), strict=True):
                segment.retire(pages)
        self._free_beyond(rows, used)  # reserved only, or not to be retained
        for state, kept in zip(states, retained, strict=True):
            self._vacant.append(state.row)
            del self._open[state.row]
            if not kept:
                self._index.remove(state)
            elif state.tokens:
                state.ledger, state.row = ledger.cut(state.row, state.tokens, ledger.pages[state.row]), 0
                self._retained[state] = None
        ledger.vacate(rows)

    def clear(self) -> None:
        """Evict every retained state."""
        for state in list(self._retained):
            self._drop(state)

    def pages_needed(self, selection: Selection, tokens: int, state: ForkState | None = None) -> list[int]:
        """Return the pages of each segment that a request may need up to `tokens` tokens, beyond those of `state`."""
        if state is None:
            return [-(-n // self.page_size) for n in most_streams(self.config, selection, tokens)]
        needed: list[list[int]] = self._lacking(state.ledger, _rows([state]), [tokens]).tolist()
        return needed[0]

    def all_needed(self, states: Sequence[ForkState], tokens: Sequence[int]) -> Indices:
        """Return `pages_needed` of open states (R,G), each up to its number of tokens (R,)."""
        return self._lacking(self.ledger, _rows(states), tokens)

    def reserve(self, states: Sequence[ForkState], tokens: ArrayLike) -> Indices:
        """Allocate the pages that states may need up to `tokens` tokens (R,) each, before their streams are known.

        Returns the most streams (R,G) that those tokens may have.
        """
        rows = _rows(states)
        most = self._may_have(self.ledger, rows, tokens)
        self._grow(rows, most)
        return most

    def allocate(self, states: Sequence[ForkState], gained: Indices) -> None:
        """Allocate the pages that open states need for so many more streams (R,G) each, as from `most_gained`."""
        rows = _rows(states)
        self._grow(rows, self.ledger.streams.take(rows, 0) + gained)

    def most_gained(self, states: Sequence[ForkState], tokens: ArrayLike) -> Indices:
        """Return the most streams (R,G) that open states may gain with so many more tokens (R,) each."""
        rows = _rows(states)
        gained: Indices = self._may_have(self.ledger, rows, np.add(self.ledger.tokens[rows], tokens))
        return gained - self.ledger.streams.take(rows, 0)

    def most_needed(self, requests: int, tokens: int = 2) -> list[int]:
        """Return pages of each segment that suffice for `tokens` more tokens of any `requests` requests."""
        most = [tokens * self.config.copies << i for i in range(len(self.segments))]
        return [requests * (-(-n // self.page_size) + 1) for n in most]  # each request's last page may be full

    def fits(self, needs: Sequence[Sequence[int]], keep: Prefix | None = None) -> bool:
        """Return whether all these needs of pages can be met at once, after `evict` with the same arguments."""
        available = [pages.pages - pages.live for pages in self.segments]
        if keep:
            available = [n - kept for n, kept in zip(available, self._idle(keep.source), strict=True)]
        return all(map(le, _sum(needs), available))

    def evict(self, needs: Sequence[Sequence[int]], keep: Prefix | None = None) -> None:
        """Evict the least recently used states, but not the source of `keep`, until pages for all needs are free."""
        needed, kept = _sum(needs), keep and keep.source
        while not self.has_free(needed):
            state = next((state for state in self._retained if state is not kept), None)
            assert state, "evicted without asking whether it fits"
            self._drop(state)

    def has_free(self, needed: Sequence[int]) -> bool:
        """Return whether so many pages of each segment are free, without an eviction."""
        return all(map(le, needed, [pages.free for pages in self.segments]))

    def make_room(self, needs: Sequence[Sequence[int]], keep: Prefix | None = None) -> bool:
        """Evict until pages for all needs are free. Return False, and evict nothing, if they do not fit."""
        if self.has_free(_sum(needs)):
            return True
        if fits := self.fits(needs, keep):
            self.evict(needs, keep)
        return fits

    def ever_fits(self, selection: Selection, tokens: int) -> bool:
        """Return whether an empty cache has enough pages for `tokens` tokens of one request."""
        most = most_streams(self.config, selection, tokens)
        return all(n <= pages.pages * self.page_size for pages, n in zip(self.segments, most, strict=True))

    def grow(self, state: ForkState, segment: int, ends: Sequence[int]) -> None:
        """Allocate pages in a segment for the streams of more tokens; `ends` are the streams up to each token."""
        ledger, row, tokens = self.ledger, state.row, state.tokens
        if ledger.pages[row, segment] * self.page_size < ends[-1]:
            self._grow(_rows([state]), ends[-1] * (np.arange(len(self.segments)) == segment))
        ledger.ends[row, segment, tokens : tokens + len(ends)] = ends
        ledger.streams[row, segment] = ends[-1]

    def extend(self, state: ForkState, ids: Sequence[int], ends: Numbers | None = None, *, guesses: int = 0) -> None:
        """Append U tokens whose streams are stored in every segment. From now on they can be found as a prefix.

        The streams up to each token were passed to `grow`, or are `ends` (G,U) if the pages were reserved. If the last
        `guesses` of the tokens are guesses, none can be found before `keep`.
        """
        tokens = state.tokens
        if ends is not None:
            self.ledger.ends[state.row, :, tokens : tokens + len(ids)] = ends
            self.ledger.streams[state.row] = ends[:, -1]
        self.ledger.ids[state.row, tokens : tokens + len(ids)] = ids
        self.ledger.tokens[state.row] += len(ids)
        if not guesses:
            self._index_blocks(state)

    def write_ids(self, states: Sequence[ForkState], layout: Layout, ids: Numbers) -> None:
        """Write the ids (U,) of the tokens of `layout` that `extend_all` appends next, several to each open state."""
        self.ledger.write_ids(_rows(states), layout, ids)

    def extend_all(self, states: Sequence[ForkState], layout: Layout, counts: Numbers, guesses: Sequence[int]) -> None:
        """Append the U tokens of `layout`, several to each open state, with streams `counts` (G,U).

        `write_ids` has written their ids, and the pages were reserved. From now on they can be found as prefixes;
        `guesses` of each state are as in `extend`.
        """
        self.ledger.extend(_rows(states), layout, counts)
        for state, guessed in zip(states, guesses, strict=True):
            if not guessed:
                self._index_blocks(state)

    def keep(self, state: ForkState, tokens: int) -> None:
        """Remove all but the first `tokens` tokens of an open state, at least one, and free the pages of the others.

        None of those removed could be found as a prefix; the others can from now on.
        """
        ledger, rows = self.ledger, _rows([state])
        if tokens < state.tokens:
            ledger.tokens[rows], ledger.streams[rows] = tokens, ledger.ends[rows, :, tokens - 1]
            self._free_beyond(rows, self._pages_for(ledger.streams[rows]))
        self._index_blocks(state)

    def append(self, rows: Indices, ids: Sequence[int], ends: Numbers) -> Indices:
        """Append a token to each open state, given by ledger row (R,), with its streams up to that token, `ends` (R,G).

        The pages were reserved. Returns the streams (R,) of each token after the last fork layer.
        """
        before = self.ledger.streams[rows, -1]
        self.ledger.append(rows, ids, ends)
        if self._retain:
            for row in rows[self.ledger.tokens[rows] % BLOCK == 0].tolist():
                self._index.grow(self._open[row].kappa, self._open[row])
        computed: Indices = ends[:, -1] - before
        return computed

    def use(self) -> CacheUse:
        """Return how much of the cache running requests use."""
        return CacheUse(
            streams=int(self.ledger.streams.sum()),
            bytes=sum(pages.live * pages.page_bytes for pages in self.segments),
            ratio=max(pages.live / pages.pages for pages in self.segments),
        )

    def check_integrity(self) -> None:
        """Assert that every page is counted for the states that have it, and that no state has more than it needs."""
        running = self._open.values()
        rows = list(range(len(self.ledger.generation)))
        assert sorted([*self._open, *self._vacant]) == rows, "rows lost or used twice"
        assert np.flatnonzero(self.ledger.generation).tolist() == sorted(self._open), "rows without a state"
        for i, pages in enumerate(self.segments):
            pages.check([state.pages(i) for state in running], [state.pages(i) for state in self._retained])
            for state in (*running, *self._retained):
                unused = len(state.pages(i)) - -(-state.streams(i) // self.page_size)
                reserved = self._open.get(state.row) is state
                assert unused == 0 or (unused > 0 and reserved), f"segment {i}: pages without streams"
                last = state.ledger.ends[state.row, i, state.tokens - 1] if state.tokens else 0
                assert last == state.streams(i), f"segment {i}: tokens missing"

    def _may_have(self, ledger: Ledger, rows: Indices, tokens: ArrayLike) -> Indices:
        """Return the most streams (R,G) that these rows can have at `tokens` tokens (R,)."""
        copies = np.multiply(tokens, self.config.copies)
        limit = np.maximum(copies, budget(np.asarray(tokens), ledger.kappa[rows], self.config.block_size))
        added = copies - ledger.tokens[rows] * self.config.copies
        doubled = ledger.streams.take(rows, 0) + (added[:, None] << np.arange(len(self.segments)))
        most: Indices = np.minimum(doubled, limit[:, None])
        return most

    def _lacking(self, ledger: Ledger, rows: Indices, tokens: ArrayLike) -> Indices:
        """Return the pages (R,G) that these rows may need beyond their own up to `tokens` tokens (R,)."""
        lacking: Indices = self._pages_for(self._may_have(ledger, rows, tokens)) - ledger.pages[rows]
        return lacking.clip(0)

    def _pages_for(self, streams: Indices) -> Indices:
        return -(-streams // self.page_size)

    def _pages(self, rows: Indices, since: Indices, until: Indices) -> list[Numbers]:
        """Return, for each segment, pages number `since` (R,G) to `until` (R,G) of these rows."""
        row, column, ends = self.ledger.cells(rows, since, until)
        pages = self.ledger.table[row, column]
        return [pages[begin:end] for begin, end in pairwise([0, *ends])]

    def _grow(self, rows: Indices, streams: Indices) -> None:
        """Allocate pages to these rows (R,) until they have enough for `streams` streams (R,G)."""
        ledger = self.ledger
        allocated = ledger.pages[rows]
        until = np.maximum(allocated, self._pages_for(streams))
        if np.array_equal(until, allocated):  # as in most steps of decoding
            return
        row, column, ends = ledger.cells(rows, allocated, until)
        for segment, first, begin, end in zip(self.segments, ledger.begin, [0, *ends], ends, strict=False):
            if end > begin:
                segment.allocate(ledger.table, row[begin:end], column[begin:end], first)
        ledger.pages[rows] = until

    def _free_beyond(self, rows: Indices, used: Indices) -> None:
        """Free the pages that these open rows (R,) have beyond their first `used` (R,G)."""
        allocated = self.ledger.pages[rows]
        if np.array_equal(used, allocated):
            return
        for segment, pages in zip(self.segments, self._pages(rows, used, allocated), strict=True):
            segment.drop(pages)
        self.ledger.pages[rows] = used

    def _index_blocks(self, state: ForkState) -> None:
        """Let requests find the whole blocks of tokens that a state has gained."""
        if self._retain and self._index.num_blocks(state) < state.tokens // BLOCK:
            self._index.grow(state.kappa, state)

    def _idle(self, state: ForkState) -> list[int]:
        """Return the number of a state's pages in each segment that no running request uses."""
        return [pages.count_idle(state.ledger.pages_of(state.row, i)) for i, pages in enumerate(self.segments)]

    def _share(self, prefix: Prefix, state: ForkState) -> None:
        """Start a state from a prefix: share its whole pages, and copy the page that the prefix ends in."""
        self.ledger.paste(state.row, prefix.state.ledger)
        for i, segment in enumerate(self.segments):
            segment.share(prefix.state.ledger.pages_of(0, i))
        self._grow(_rows([state]), self.ledger.streams[[state.row]])
        for i, segment in enumerate(self.segments):
            whole, own = len(prefix.state.pages(i)), state.pages(i)
            if len(own) > whole:
                segment.copy(prefix.source.pages(i)[whole], to=own[whole])
        self._index.grow(state.kappa, state)
        if prefix.source in self._retained:  # most recently used
            self._retained[prefix.source] = self._retained.pop(prefix.source)

    def _drop(self, state: ForkState) -> None:
        del self._retained[state]
        self._index.remove(state)
        for i, segment in enumerate(self.segments):
            segment.release(state.ledger.pages_of(state.row, i))


def _rows(states: Sequence[ForkState]) -> Indices:
    return np.array([state.row for state in states], np.int64)


def _sum(needs: Sequence[Sequence[int]]) -> list[int]:
    """Return the sum of needs for each segment."""
    if len(needs) == 1:
        return list(needs[0])
    return [sum(need) for need in zip(*needs, strict=True)]
