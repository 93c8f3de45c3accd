"""Pages, slots and the ask-then-do of the fork-state cache."""

import pytest
import torch
from torch import Tensor

from engine.fork_cache import ForkCache, ForkState, most_streams, segments
from model import ModelConfig, Selection

CONFIG = ModelConfig(
    vocab_size=11, block_size=32, max_block_size=64, n_layer=6, n_head=2, n_embd=16, fork_layers=(2, 5)
)
CAUSAL = Selection.of(CONFIG, "causal")


def make(total_bytes: int = 1 << 20) -> ForkCache:
    return ForkCache(CONFIG, max_tokens=32, total_bytes=total_bytes, page_size=4, like=torch.zeros(()))


def test_segments_are_the_layers_between_forks() -> None:
    assert [s.layers for s in segments(CONFIG)] == [range(2), range(2, 5), range(5, 6)]
    assert [s.forks_after for s in segments(CONFIG)] == [True, True, False]


def test_each_fork_doubles_the_streams_under_the_budget() -> None:
    assert most_streams(CONFIG, CAUSAL, 3) == [3, 6, 6]
    assert most_streams(CONFIG, Selection.of(CONFIG, "causal", 3), 3) == [3, 6, 9]
    assert most_streams(CONFIG, Selection.of(CONFIG, "causal", 1), 3) == [3, 3, 3]


def test_no_more_pages_than_bytes() -> None:
    cache = make(100_000)
    assert sum(pages.pages * pages.page_bytes for pages in cache.segments) <= 100_000


def test_pages_are_taken_as_streams_come_and_all_come_back() -> None:
    cache = make()
    state = cache.open(CAUSAL)
    assert cache.pages_needed(CAUSAL, 5) == [2, 3, 3]
    for segment, ends in enumerate([[1, 2, 3, 4, 5], [2, 4, 5, 6, 8], [1, 3, 4, 7, 9]]):
        cache.grow(state, segment, ends)
    assert [len(pages) for pages in state.pages] == [2, 2, 3]
    cache.extend(state, [7] * 5)
    assert cache.pages_needed(CAUSAL, 6, state) == [0, 1, 0]
    assert state.fork_counts(3) == [1, 3, 2]
    assert cache.use().streams == 5 + 8 + 9
    cache.check_integrity()
    cache.close(state)
    cache.check_integrity()
    assert (cache.use().streams, cache.use().bytes, cache.use().ratio) == (0, 0, 0)
    cache.clear()
    cache.check_integrity()
    assert all(pages.free == pages.pages for pages in cache.segments)


def test_fits_adds_up_what_several_need() -> None:
    cache = make()
    free = cache.segments[0].free
    assert cache.fits([[free - 1, 0, 0], [1, 0, 0]])
    assert not cache.fits([[free - 1, 0, 0], [2, 0, 0]])
    assert cache.ever_fits([free, 0, 0])
    assert not cache.ever_fits([free + 1, 0, 0])


def fill(cache: ForkCache, state: ForkState, streams: int, mark: int) -> Tensor:
    """Grow segment 1 to `streams` streams, write keys for the new ones, and return these."""
    pages, before = cache.segments[1], state.streams(1)
    cache.grow(state, 1, [streams])
    slots = pages.slots(state.pages[1], streams)
    where = (torch.arange(slots.start, slots.stop) if isinstance(slots, slice) else slots)[before:]
    keys = torch.randn(2, streams - before, 8)
    pages.write(3, where, torch.stack((keys, -keys)))
    pages.write_scores(where, torch.full((streams - before, 2), mark, dtype=torch.int32))
    return keys


def test_streams_are_read_where_they_were_written() -> None:
    """Also when pages of several requests had to be mixed."""
    cache = make(80_000)
    states = [cache.open(CAUSAL) for _ in range(3)]
    written: list[list[Tensor]] = [[], [], []]
    kinds = set()
    for streams in range(3, 3 * cache.segments[1].pages, 3):
        for i, state in enumerate(states):
            if cache.segments[1].free:
                written[i].append(fill(cache, state, streams, i))
            slots = cache.segments[1].slots(state.pages[1], state.streams(1))
            keys, values = cache.segments[1].read(3, slots)
            assert torch.equal(keys, torch.cat(written[i], dim=1))
            assert torch.equal(values, -keys)
            assert (cache.segments[1].read_scores(slots) == i).all()
            kinds.add(type(slots))
    assert kinds == {slice, Tensor}, "the test should see pages side by side and pages apart"


def test_a_lone_request_lies_side_by_side_to_the_last_page() -> None:
    cache = make()
    state, pages = cache.open(CAUSAL), cache.segments[1]
    cache.grow(state, 1, [pages.pages * pages.page_size])
    assert isinstance(pages.slots(state.pages[1], 7), slice)


def test_a_lost_page_is_found_out() -> None:
    cache = make()
    state = cache.open(CAUSAL)
    cache.grow(state, 0, [1])
    state.pages[0].append(state.pages[0][0])
    with pytest.raises(AssertionError, match="lost or held twice"):
        cache.check_integrity()
