"""The fork-state cache: all that the causal rule lets a request keep of the tokens it has seen.

For each request and segment the cache holds, in pages of a fixed pool, the keys and values of its live streams at
every layer of the segment, and the grid scores of the two candidates that each stream made at the fork which ends the
segment, the deleted ones too. What `causal` gives a token never changes afterwards (SPEC.md, "Selection rules"), so
nothing here is ever revised, and what one request leaves serves any other that begins with the same tokens under the
same budget: whole pages are shared by count, and of one that is cut a copy is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from engine.pages import Segment, SegmentPages
from engine.prefix_index import PrefixIndex
from model import ModelConfig, Selection


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


@dataclass(eq=False)
class ForkState:
    """What the cache holds of one sequence."""

    kappa: int
    """κ of the budget that chose its streams; under another they would be others."""
    ids: list[int]
    """Its tokens."""
    pages: list[list[int]]
    """For each segment its pages, in stream order."""
    ends: list[list[int]]
    """For each segment, how many streams the tokens up to each token have: the streams' token index."""

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return len(self.ids)

    def streams(self, segment: int) -> int:
        """Live streams held in a segment."""
        return self.ends[segment][-1] if self.ends[segment] else 0

    def fork_counts(self, last: int) -> list[int]:
        """Streams after the last fork layer of each of the `last` newest tokens."""
        ends = self.ends[-1]
        first = len(ends) - last
        return [end - before for before, end in pairwise([ends[first - 1] if first else 0, *ends[first:]])]


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
    """Pages for every running request. Ask, then do: where `fits` says that requests may grow, `grow` does not fail.

    What requests leave is retained, the longest unused of it given up first, when pages are wanted.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        max_tokens: int,
        total_bytes: int,
        page_size: int,
        like: Tensor,
        retain: bool = True,
    ) -> None:
        """Pages of `total_bytes` together, on the device and in the type of `like`; `retain` whether to share prefixes.

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
        self._retain = retain
        self._open: list[ForkState] = []
        self._retained: list[ForkState] = []
        self._index: PrefixIndex[ForkState] = PrefixIndex()

    def find(self, selection: Selection, ids: Sequence[int]) -> Prefix | None:
        """The longest beginning of `ids` that a state holds under this budget."""
        found = self._index.find(selection.max_block_size, ids)
        if found is None:
            return None
        source, tokens = found
        ends = [each[:tokens] for each in source.ends]
        pages = [held[: cut[-1] // self.page_size] for held, cut in zip(source.pages, ends, strict=True)]
        return Prefix(source, ForkState(source.kappa, source.ids[:tokens], pages, ends))

    def open(self, selection: Selection, prefix: Prefix | None = None) -> ForkState:
        """A state to extend: empty, or with the tokens of a prefix, for which the pages must be there."""
        if prefix is None:
            state = self._empty(selection.max_block_size)
        else:
            state = self._share(prefix)
            self._index.grow(state.kappa, state, prefix.state.ids)
        self._open.append(state)
        return state

    def close(self, state: ForkState) -> None:
        """The request runs no more. Its pages can be had by others from now on; until then its tokens can be found."""
        self._open.remove(state)
        for i, (segment, held) in enumerate(zip(self.segments, state.pages, strict=True)):
            segment.retire(held)
            unused = segment.pages_for(state.streams(i))  # of pages that were reserved
            segment.release(held[unused:])
            del held[unused:]
        self._retained.append(state)
        if not self._retain or not state.ids:
            self._drop(state)

    def clear(self) -> None:
        """Give up all that is retained."""
        for state in list(self._retained):
            self._drop(state)

    def pages_needed(self, selection: Selection, tokens: int, state: ForkState | None = None) -> list[int]:
        """The pages of each segment that a request may take to grow to `tokens` tokens, beyond those of `state`."""
        state = state or self._empty(selection.max_block_size)
        streams = self._may_have(selection, tokens, state)
        return [
            max(0, pages.pages_for(n) - len(held))
            for pages, n, held in zip(self.segments, streams, state.pages, strict=True)
        ]

    def reserve(self, state: ForkState, selection: Selection, tokens: int) -> list[int]:
        """Take the pages that a state may need to grow to `tokens` tokens, before it is known how many it does.

        Returns the streams of each segment that they are taken for.
        """
        most = self._may_have(selection, tokens, state)
        for pages, n, held in zip(self.segments, most, state.pages, strict=True):
            pages.grow(held, n)
        return most

    def fits(self, needs: Sequence[Sequence[int]], spare: Prefix | None = None) -> bool:
        """Whether all these needs of pages can be met at once; gives up what is retained, but not `spare`, for that."""
        while not self._free(needs):
            victims = [state for state in self._retained if spare is None or state is not spare.source]
            if not victims:
                return False
            self._drop(victims[0])
        return True

    def is_roomy(self, requests: int, tokens: int = 2) -> bool:
        """Whether so many requests could certainly have so many tokens more each, which is quick to say."""
        most = [tokens * self.config.copies << pages.segment.index for pages in self.segments]
        return all(
            pages.free >= requests * (pages.pages_for(n) + 1) for pages, n in zip(self.segments, most, strict=True)
        )

    def ever_fits(self, need: Sequence[int]) -> bool:
        """Whether an empty cache could meet this need."""
        return all(n <= pages.pages for pages, n in zip(self.segments, need, strict=True))

    def grow(self, state: ForkState, segment: int, ends: Sequence[int]) -> None:
        """Make room in a segment for the streams of more tokens, told as streams up to each token."""
        self.segments[segment].grow(state.pages[segment], ends[-1])
        state.ends[segment].extend(ends)

    def extend(self, state: ForkState, ids: Sequence[int]) -> None:
        """Note the tokens whose streams every segment now holds; from here on they can be found."""
        if self._retain:
            self._index.grow(state.kappa, state, ids)
        else:
            state.ids.extend(ids)

    def append(self, state: ForkState, token: int, ends: Sequence[int]) -> None:
        """Note one token and the streams that every segment holds with it."""
        for known, end in zip(state.ends, ends, strict=True):
            known.append(end)
        self.extend(state, (token,))

    def use(self) -> CacheUse:
        """How full the cache is now."""
        return CacheUse(
            streams=sum(state.streams(i) for state in self._open for i in range(len(self.segments))),
            bytes=sum(pages.live * pages.page_bytes for pages in self.segments),
            ratio=max(pages.live / pages.pages for pages in self.segments),
        )

    def check_integrity(self) -> None:
        """Assert that pages are held by open and retained states, and by each no more than its streams need."""
        for i, pages in enumerate(self.segments):
            pages.check([state.pages[i] for state in self._open], [state.pages[i] for state in self._retained])
            for state in (*self._open, *self._retained):
                unused = len(state.pages[i]) - pages.pages_for(state.streams(i))
                assert unused == 0 or (unused > 0 and state in self._open), f"segment {i}: pages without streams"
                assert len(state.ends[i]) == state.tokens, f"segment {i}: tokens missing"

    def _may_have(self, selection: Selection, tokens: int, state: ForkState) -> list[int]:
        """The most streams of each segment that a state has once it has grown to `tokens` tokens."""
        added = (tokens - state.tokens) * self.config.copies
        most = most_streams(self.config, selection, tokens)
        return [min(state.streams(i) + (added << i), n) for i, n in enumerate(most)]

    def _free(self, needs: Sequence[Sequence[int]]) -> bool:
        return all(
            sum(need) <= pages.free for pages, need in zip(self.segments, zip(*needs, strict=True), strict=False)
        )

    def _share(self, prefix: Prefix) -> ForkState:
        """A new state with a prefix's streams: whole pages shared, the one that was cut copied."""
        state = ForkState(prefix.state.kappa, [], prefix.state.pages, prefix.state.ends)
        for i, (segment, held) in enumerate(zip(self.segments, state.pages, strict=True)):
            segment.share(held)
            whole = len(held)
            segment.grow(held, state.streams(i))
            if len(held) > whole:
                segment.copy(prefix.source.pages[i][whole], to=held[whole])
        if prefix.source in self._retained:  # used again, so the last to be given up
            self._retained.remove(prefix.source)
            self._retained.append(prefix.source)
        return state

    def _drop(self, state: ForkState) -> None:
        self._retained.remove(state)
        self._index.remove(state.kappa, state)
        for segment, held in zip(self.segments, state.pages, strict=True):
            segment.release(held)

    def _empty(self, kappa: int) -> ForkState:
        return ForkState(kappa, [], [[] for _ in self.segments], [[] for _ in self.segments])
