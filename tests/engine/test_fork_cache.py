"""Pages and slots of the fork-state cache, what fits in it, and what is evicted."""

import mmap
import random
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache, Prefix, most_streams, segments
from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.model import ModelConfig, Selection

CONFIG = ModelConfig(
    vocab_size=11, block_size=32, max_block_size=64, n_layer=6, n_head=2, n_embd=16, fork_layers=(2, 5)
)
CAUSAL = Selection.of(CONFIG, "causal")
STATM = Path("/proc/self/statm")


def make(total_bytes: int = 1 << 20, device: str = "cpu", *, retain: bool = True) -> ForkCache:
    """On `meta` pages are given out as on a device that computes."""
    like = torch.zeros((), device=device)
    return ForkCache(CONFIG, max_tokens=32, total_bytes=total_bytes, page_size=4, like=like, requests=6, retain=retain)


def go_on(cache: ForkCache, states: list[ForkState], tokens: int) -> None:
    """Append a token to each of the states until they have so many, with the most streams that these may give."""
    while some := [state for state in states if state.tokens < tokens]:
        ids = [state.tokens for state in some]
        most = cache.reserve(some, [n + 1 for n in ids])
        cache.append(np.array([state.row for state in some]), ids, most.astype(np.int32))


def leave(cache: ForkCache, ids: range) -> None:
    """Run a request with these tokens to its end."""
    state = cache.open(CAUSAL)
    most = cache.reserve([state], [len(ids)])[0]
    cache.extend(state, ids, np.linspace(1, most, len(ids), axis=1).astype(np.int32))
    cache.close([state])


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


@pytest.mark.skipif(not STATM.exists(), reason="this processor lacks /proc")
def test_pages_take_memory_when_they_are_written() -> None:
    """And are zeros until then, since masked values are still multiplied, by 0."""
    before = resident_bytes()
    cache = make(1 << 29)
    assert resident_bytes() - before < 1 << 26
    state = cache.open(CAUSAL)
    cache.reserve([state], [32])
    for pages in cache.segments:
        slots = pages.slots(state.pages(pages.segment.index), 8)
        assert not pages.read(pages.segment.layers.start, slots).any()
        assert pages.keys.is_contiguous()


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * mmap.PAGESIZE


def test_pages_are_taken_as_streams_come_and_all_come_back() -> None:
    cache = make()
    state = cache.open(CAUSAL)
    assert cache.pages_needed(CAUSAL, 5) == [2, 3, 3]
    for segment, ends in enumerate([[1, 2, 3, 4, 5], [2, 4, 5, 6, 8], [1, 3, 4, 7, 9]]):
        cache.grow(state, segment, ends)
    assert [len(state.pages(i)) for i in range(3)] == [2, 2, 3]
    cache.extend(state, [7] * 5)
    assert cache.pages_needed(CAUSAL, 6, state) == [0, 1, 0]
    assert state.ledger.ends[state.row, -1, :5].tolist() == [1, 3, 4, 7, 9]
    assert cache.use().streams == 5 + 8 + 9
    cache.check_integrity()
    cache.close([state])
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
    assert cache.ever_fits(CAUSAL, 4 * free)
    assert not cache.ever_fits(CAUSAL, 4 * free + 1)


def fill(cache: ForkCache, state: ForkState, streams: int, mark: int) -> Tensor:
    """Grow segment 1 to `streams` streams, write keys for the new ones, and return these."""
    pages, before = cache.segments[1], state.streams(1)
    cache.grow(state, 1, [streams])
    slots = pages.slots(state.pages(1), streams)
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
            slots = cache.segments[1].slots(state.pages(1), state.streams(1))
            keys, values = cache.segments[1].read(3, slots)
            assert torch.equal(keys, torch.cat(written[i], dim=1))
            assert torch.equal(values, -keys)
            assert (cache.segments[1].read_scores(slots) == i).all()
            kinds.add(type(slots))
    assert kinds == {slice, Tensor}, "the test should see pages side by side and pages apart"


def test_a_lone_request_lies_side_by_side_to_the_last_page() -> None:
    cache = make(50_000)
    state, pages = cache.open(CAUSAL), cache.segments[1]
    cache.grow(state, 1, [16 * pages.page_size])
    assert isinstance(pages.slots(state.pages(1), 7), slice)


def test_requests_lie_close_together_and_can_grow() -> None:
    """Memory is taken where pages are first written, so those that are written should be few and near."""
    cache = make(200_000)
    longest = most_streams(CONFIG, CAUSAL, 32)[1] // cache.page_size

    def begin() -> ForkState:
        state = cache.open(CAUSAL)
        go_on(cache, [state], 1)
        return state

    states = [begin() for _ in range(3)]
    assert [state.pages(1)[0] for state in states] == [0, longest, 2 * longest]
    go_on(cache, states, 32)
    assert all(isinstance(pages.slots(state.pages(i), 1), slice)
               for i, pages in enumerate(cache.segments) for state in states)  # fmt: skip
    cache.close(states[1:])
    assert begin().pages(1)[0] == 3 * longest, "after what is kept, which does not grow"
    cache.clear()
    assert begin().pages(1)[0] == 2 * longest - 1, "after the first, which may grow"


def test_a_lost_page_is_found_out() -> None:
    cache = make()
    state = cache.open(CAUSAL)
    cache.grow(state, 0, [1])
    cache.ledger.pages[state.row, 0] += 1
    with pytest.raises(AssertionError, match="lost or used twice"):
        cache.check_integrity()


def asked(cache: ForkCache, needs: list[list[int]], keep: Prefix | None) -> bool:
    """`fits`, which changes nothing, and says what `make_room` can do."""
    before = ([pages.free for pages in cache.segments], list(cache._retained))
    answer = cache.fits(needs, keep)
    assert ([pages.free for pages in cache.segments], list(cache._retained)) == before
    cache, keep = deepcopy((cache, keep))
    assert cache.make_room(needs, keep) == answer
    if answer:
        assert keep is None or keep.source in {*cache._retained, *cache._open.values()}
        needed = [sum(need) for need in zip(*needs, strict=True)]
        assert all(n <= pages.free for n, pages in zip(needed, cache.segments, strict=True))
    else:
        assert ([pages.free for pages in cache.segments], len(cache._retained)) == (before[0], len(before[1]))
        with pytest.raises(AssertionError, match="evicted without asking"):
            cache.evict(needs, keep)
    return answer


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_pages_are_counted_through_lives_of_chance(device: str) -> None:
    """Requests that share beginnings come, grow together and go, some at once; in the end every page is there."""
    dice, cache, running = random.Random(2), make(150_000, device), list[ForkState]()
    shared = 0
    for _ in range(300):
        tokens = dice.randint(1, 32)
        prefix = cache.find(CAUSAL, range(dice.randint(1, 32)))
        if prefix and prefix.state.tokens > tokens:
            prefix = None
        needs = [cache.pages_needed(CAUSAL, tokens, prefix.state if prefix else None)]
        targets = [max(tokens, each.tokens) for each in running]
        if len(running) < 6 and dice.random() < 0.6 and asked(cache, needs, prefix):
            cache.evict(needs, prefix)
            running.append(cache.open(CAUSAL, prefix))
            shared += running[-1].tokens
            go_on(cache, running[-1:], tokens)
        elif running and asked(cache, needs := cache.all_needed(running, targets).tolist(), None):
            cache.evict(needs)
            go_on(cache, running, tokens)
        gone = [state for state in running if dice.random() < 0.2]
        cache.close(gone)
        running = [state for state in running if state not in gone]
        cache.check_integrity()
    assert shared > 100
    cache.close(running)
    cache.clear()
    cache.check_integrity()
    assert all(pages.free == pages.pages for pages in cache.segments)


@pytest.mark.parametrize("spoilt", [(), (0, 1, 2, 3), (1, 3)], ids=str)
@pytest.mark.parametrize("retain", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_sharers_that_end_together_let_their_pages_go_once_each(
    device: str, retain: bool, spoilt: tuple[int, ...]
) -> None:
    """Also those whose logits were NaN or infinite, of which nothing is retained."""
    cache = make(device=device, retain=retain)
    states = [cache.open(CAUSAL)]
    go_on(cache, states, 20)
    states += [cache.open(CAUSAL, cache.find(CAUSAL, range(20))) for _ in range(3)]
    assert [state.tokens for state in states] == ([20] * 4 if retain else [20, 0, 0, 0])
    go_on(cache, states, 24)
    cache.check_integrity()
    for i in spoilt:
        states[i].spoilt = True
    cache.close(states)
    cache.check_integrity()
    assert cache.use().bytes == 0
    cache.clear()
    cache.check_integrity()


def test_who_takes_a_row_again_finds_nothing_of_the_one_before() -> None:
    cache = make(retain=False)
    first = [cache.open(CAUSAL) for _ in range(6)]
    generations = cache.ledger.generation.tolist()
    go_on(cache, first, 9)
    cache.close(first[2:4])
    again = cache.open(Selection.of(CONFIG, "causal", 1))
    assert again.row in (first[2].row, first[3].row)
    assert cache.ledger.generation[again.row] > max(generations)
    assert (again.kappa, again.tokens, again.streams(2), again.pages(2)) == (32, 0, 0, [])
    cache.check_integrity()


def test_a_state_is_closed_once() -> None:
    cache = make()
    state = cache.open(CAUSAL)
    go_on(cache, [state], 3)
    cache.close([state])
    with pytest.raises(AssertionError, match="closed twice"):
        cache.close([state])
    cache.check_integrity()


def test_what_is_reserved_and_not_needed_comes_back() -> None:
    cache = make(device="meta")
    state = cache.open(CAUSAL)
    cache.reserve([state], [32])
    assert [len(state.pages(i)) for i in range(3)] == [8, 16, 16]
    cache.append(np.array([state.row]), [7], np.array([[1, 1, 2]], np.int32))
    cache.close([state])
    assert [len(state.pages(i)) for i in range(3)] == [1, 1, 1]
    cache.check_integrity()


def test_only_evict_evicts_and_no_more_than_is_needed() -> None:
    cache = make(100_000)
    leave(cache, range(32))
    assert [(pages.free, pages.pages) for pages in cache.segments] == [(11, 19), (22, 38), (22, 38)]
    assert cache.most_needed(5) == [10, 10, 15]  # two tokens each, and so two, two and three pages
    assert not cache.fits([cache.most_needed(10)])
    assert cache.fits([cache.most_needed(9)])
    cache.evict([cache.most_needed(5)])
    assert cache.find(CAUSAL, range(32))
    cache.evict([cache.most_needed(9)])
    assert cache.find(CAUSAL, range(32)) is None


def test_a_prefix_that_is_kept_is_no_room_and_the_longest_unused_goes_first() -> None:
    cache = make(100_000)
    for first in (0, 100, 200):
        leave(cache, range(first, first + 16))
    kept = cache.find(CAUSAL, range(16))
    assert kept
    everything = [[pages.pages for pages in cache.segments]]
    assert cache.fits(everything)
    assert not cache.fits(everything, kept)
    assert all(cache.find(CAUSAL, range(first, first + 16)) for first in (0, 100, 200))
    cache.evict([[pages.free + 1 for pages in cache.segments]], kept)
    assert [cache.find(CAUSAL, range(first, first + 16)) is not None for first in (0, 100, 200)] == [True, False, True]


def test_pages_that_are_not_free_are_not_taken() -> None:
    cache = make(100_000, device="meta")
    for first in (0, 100):
        leave(cache, range(first, first + 32))
    state = cache.open(CAUSAL)
    with pytest.raises(AssertionError, match="were not free"):
        cache.reserve([state], [32])
