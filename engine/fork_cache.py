"""The fork-state cache: all that the causal rule lets a request keep of the tokens it has seen.

For each request and segment the cache holds, in pages of a fixed pool, the keys and values of its live streams at
every layer of the segment, and the grid scores of the two candidates that each stream made at the fork which ends the
segment, the deleted ones too. What `causal` gives a token never changes afterwards (SPEC.md, "Selection rules"), so
nothing here is ever revised.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from engine.pages import Segment, SegmentPages
from model import ModelConfig, Selection


def segments(config: ModelConfig) -> list[Segment]:
    """The segments of a model, one more than it has fork layers."""
    bounds = [0, *config.fork_layers, config.n_layer]
    last = len(config.fork_layers)
    return [Segment(i, range(a, b), forks_after=i < last) for i, (a, b) in enumerate(pairwise(bounds))]


def most_streams(config: ModelConfig, selection: Selection, tokens: int) -> list[int]:
    """The most streams that `tokens` tokens have in each segment: every fork doubles them, under the budget."""
    kappa, first = selection.budget(tokens), tokens * config.copies
    return [first, *(min(first << i, kappa) for i in range(1, len(config.fork_layers) + 1))]


@dataclass(eq=False)
class ForkState:
    """What the cache holds of one request."""

    pages: list[list[int]]
    """For each segment its pages, in stream order."""
    ends: list[list[int]]
    """For each segment, how many streams the tokens up to each token have: the streams' token index."""

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return len(self.ends[0])

    def streams(self, segment: int) -> int:
        """Live streams held in a segment."""
        return self.ends[segment][-1] if self.ends[segment] else 0

    def fork_counts(self, last: int) -> list[int]:
        """Streams after the last fork layer of each of the `last` newest tokens."""
        ends = [0, *self.ends[-1]]
        return [end - before for before, end in pairwise(ends[-last - 1 :])]


@dataclass(frozen=True)
class CacheUse:
    """How full the cache is."""

    streams: int
    """Live streams held, over all segments."""
    bytes: int
    """Bytes of the pages that are held."""
    ratio: float
    """Share of its pages that the fullest segment has given out, 0 … 1."""


class ForkCache:
    """Pages for every running request. Ask, then do: where `fits` says that requests may grow, `grow` does not fail."""

    def __init__(self, config: ModelConfig, *, max_tokens: int, total_bytes: int, page_size: int, like: Tensor) -> None:
        """Pages of `total_bytes` together, on the device and in the type of `like`.

        `ValueError` naming `cache_bytes` when not one request of `max_tokens` at the model's ratio would fit.
        """
        self.config = config
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
        self._open: list[ForkState] = []

    def open(self) -> ForkState:
        """An empty state."""
        state = self._empty()
        self._open.append(state)
        return state

    def close(self, state: ForkState) -> None:
        """Free all that a state holds; it must not be used again."""
        self._open.remove(state)
        for segment, held in zip(self.segments, state.pages, strict=True):
            segment.release(held)

    def pages_needed(self, selection: Selection, tokens: int, state: ForkState | None = None) -> list[int]:
        """The pages of each segment that a request may take to grow to `tokens` tokens, beyond those of `state`."""
        state = state or self._empty()
        added = (tokens - state.tokens) * self.config.copies
        most = most_streams(self.config, selection, tokens)
        streams = [min(state.streams(i) + (added << i), n) for i, n in enumerate(most)]
        return [
            pages.pages_for(n) - len(held) for pages, n, held in zip(self.segments, streams, state.pages, strict=True)
        ]

    def fits(self, needs: Iterable[Sequence[int]]) -> bool:
        """Whether all these needs of pages can be met at once, now."""
        return all(
            sum(need) <= pages.free for pages, need in zip(self.segments, zip(*needs, strict=True), strict=False)
        )

    def ever_fits(self, need: Sequence[int]) -> bool:
        """Whether an empty cache could meet this need."""
        return all(n <= pages.pages for pages, n in zip(self.segments, need, strict=True))

    def grow(self, state: ForkState, segment: int, ends: Sequence[int]) -> None:
        """Make room in a segment for the streams of more tokens, told as streams up to each token."""
        self.segments[segment].grow(state.pages[segment], ends[-1])
        state.ends[segment].extend(ends)

    def use(self) -> CacheUse:
        """How full the cache is now."""
        held = [pages.pages - pages.free for pages in self.segments]
        return CacheUse(
            streams=sum(state.streams(i) for state in self._open for i in range(len(self.segments))),
            bytes=sum(n * pages.page_bytes for n, pages in zip(held, self.segments, strict=True)),
            ratio=max(n / pages.pages for n, pages in zip(held, self.segments, strict=True)),
        )

    def check_integrity(self) -> None:
        """Assert that every page is free or held by one open state, and holds no more than the state's streams need."""
        for i, pages in enumerate(self.segments):
            pages.check([state.pages[i] for state in self._open])
            for state in self._open:
                assert len(state.pages[i]) == pages.pages_for(state.streams(i)), f"segment {i}: pages without streams"
                assert len(state.ends[i]) == state.tokens, f"segment {i}: tokens missing"

    def _empty(self) -> ForkState:
        return ForkState([[] for _ in self.segments], [[] for _ in self.segments])
