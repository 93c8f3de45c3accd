"""Pages, slots and the ask-then-do of the fork-state cache."""

import pytest
import torch

from engine.fork_cache import ForkCache, most_streams, segments
from model import ModelConfig, Selection

CONFIG = ModelConfig(
    vocab_size=11, block_size=32, max_block_size=64, n_layer=6, n_head=2, n_embd=16, fork_layers=(2, 5)
)
CAUSAL = Selection.of(CONFIG, "causal")


def make(total_bytes: int = 1 << 20, rows: int = 4) -> ForkCache:
    return ForkCache(CONFIG, rows=rows, max_tokens=32, total_bytes=total_bytes, page_size=4, like=torch.zeros(()))


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
    state = cache.open()
    assert cache.pages_needed(CAUSAL, 5) == [2, 3, 3]
    for segment, ends in enumerate([[1, 2, 3, 4, 5], [2, 4, 5, 6, 8], [1, 3, 4, 7, 9]]):
        cache.grow(state, segment, ends)
    assert [len(pages) for pages in state.pages] == [2, 2, 3]
    assert cache.pages_needed(CAUSAL, 6, state) == [0, 1, 0]
    assert state.fork_counts(3) == [1, 3, 2]
    assert cache.use().streams == 5 + 8 + 9
    cache.check_integrity()
    cache.close(state)
    cache.check_integrity()
    assert (cache.use().streams, cache.use().bytes, cache.use().ratio) == (0, 0, 0)


def test_fits_adds_up_what_several_need() -> None:
    cache = make()
    free = cache.segments[0].free
    assert cache.fits([[free - 1, 0, 0], [1, 0, 0]])
    assert not cache.fits([[free - 1, 0, 0], [2, 0, 0]])
    assert cache.ever_fits([free, 0, 0])
    assert not cache.ever_fits([free + 1, 0, 0])


def test_streams_are_read_where_they_were_written() -> None:
    cache = make()
    a, b = cache.open(), cache.open()
    pages = cache.segments[1]
    written = {}
    for n, (state, count) in enumerate([(a, 3), (b, 6), (a, 9), (b, 10)]):
        before = state.streams(1)
        cache.grow(state, 1, [count])
        slots = pages.slots([state.row], count)[0, before:]
        keys = torch.randn(count - before, 2, 8)
        pages.write(3, slots, keys, -keys)
        pages.write_scores(slots, torch.full((count - before, 2), n))
        written[state.row, n] = keys
    slots = pages.slots([a.row, b.row], 10)
    keys, values = pages.read(3, slots)
    wanted_a, wanted_b = (torch.cat([written[s.row, n] for n in order]) for s, order in [(a, (0, 2)), (b, (1, 3))])
    assert torch.equal(keys[0, :9], wanted_a)
    assert torch.equal(values[1], -wanted_b)
    assert pages.read_scores(slots)[1, :, 0].tolist() == [1] * 6 + [3] * 4


def test_a_lost_page_is_found_out() -> None:
    cache = make()
    state = cache.open()
    cache.grow(state, 0, [1])
    state.pages[0].append(state.pages[0][0])
    with pytest.raises(AssertionError, match="lost or held twice"):
        cache.check_integrity()
