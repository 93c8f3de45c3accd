"""A cached prefix of any length serves later requests and does not change their tokens."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.engine.test_oracle import check
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.cache.prefix_index import BLOCK, PrefixIndex
from thoughtbubbles.model import Thoughtbubbles, Tokenizer


@dataclass(eq=False)
class Sequence:
    ids: list[int] = field(default_factory=list)


def related_prompts(count: int) -> list[list[int]]:
    """Prompts of which each continues an earlier one from a random token."""
    dice = random.Random(3)
    prompts = [[dice.randrange(256) for _ in range(40)]]
    while len(prompts) < count:
        old = dice.choice(prompts)
        prompts.append(old[: dice.randint(1, len(old))] + [dice.randrange(256) for _ in range(dice.randint(0, 12))])
        prompts[-1] = prompts[-1][:50]
    return prompts


def make(model: Thoughtbubbles, tokenizer: Tokenizer, **settings: object) -> Engine:
    config = {"max_batch_size": 6, "page_size": 4, "cache_bytes": 1 << 22, **settings}
    return Engine(model, tokenizer, EngineConfig(**config))  # type: ignore[arg-type]


@pytest.mark.numeric
@pytest.mark.parametrize("cache_bytes", [1 << 22, 300_000])
@torch.no_grad()
def test_tokens_and_log_probabilities_are_the_oracles(
    cache_bytes: int, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    """With enough pages for everything, and with so few that prefixes are evicted and requests preempted."""
    engine, dice = make(model, tokenizer, cache_bytes=cache_bytes), random.Random(1)
    prompts = related_prompts(60)
    ratios = [dice.choice([None, None, 1.3]) for _ in prompts]
    settings = {"max_tokens": 10, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    for start in range(0, len(prompts), 20):
        for ratio in (None, 1.3):
            some = [
                p for p, r in zip(prompts[start : start + 20], ratios[start : start + 20], strict=True) if r == ratio
            ]
            params = SamplingParams(**settings, fork_ratio=ratio)  # type: ignore[arg-type]
            for prompt, completion in zip(some, engine.generate(some, params), strict=True):
                check(model, prompt, completion, ratio)
            engine.cache.check_integrity()
    stats = engine.stats()
    assert stats.prefix_cache_hits_total > 0
    assert stats.prefix_cache_queries_total > stats.prefix_cache_hits_total
    assert stats.cache_bytes == 0
    engine.cache.clear()
    engine.cache.check_integrity()
    assert all(pages.free == pages.pages for pages in engine.cache.segments)


def test_seeded_tokens_are_the_same_with_and_without(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    prompts = related_prompts(24)
    params = SamplingParams(max_tokens=12, temperature=1.5, seed=5, ignore_eos=True)
    without = make(model, tokenizer, prefix_caching=False)
    wanted = [c.token_ids for c in without.generate(prompts, params)]
    engine = make(model, tokenizer)
    for _ in range(2):
        assert [c.token_ids for c in engine.generate(prompts, params)] == wanted
    assert without.stats().prefix_cache_hits_total == 0


def test_only_what_is_looked_up_counts_as_a_query(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    """A prompt that is scored is computed whole: it would make the share of hits look lower."""
    engine, without = make(model, tokenizer), make(model, tokenizer, prefix_caching=False)
    prompt = list(range(20))
    engine.generate([prompt], SamplingParams(max_tokens=0, prompt_logprobs=0))
    without.generate([prompt], SamplingParams(max_tokens=1))
    assert [each.stats().prefix_cache_queries_total for each in (engine, without)] == [0, 0]
    [found] = engine.generate([prompt], SamplingParams(max_tokens=1))
    assert (engine.stats().prefix_cache_queries_total, engine.stats().prefix_cache_hits_total) == (20, 19)
    assert found.events[-1].usage
    assert found.events[-1].usage.cached_tokens == 19


def test_the_choices_of_one_prompt_compute_it_once(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    prompt = list(range(40))
    completions = make(model, tokenizer).generate([prompt] * 5, SamplingParams(max_tokens=2))
    usages = [c.events[-1].usage for c in completions]
    assert [u.cached_tokens for u in usages if u] == [0, 39, 39, 39, 39]


def test_a_conversation_goes_on_where_it_was(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine = make(model, tokenizer)
    [first] = engine.generate([list(range(30))], SamplingParams(max_tokens=8, ignore_eos=True))
    longer = [*range(30), *first.token_ids, 5, 6]
    [second] = engine.generate([longer], SamplingParams(max_tokens=1))
    usage = second.events[-1].usage
    assert usage is not None
    assert usage.cached_tokens == 37  # the last token of the first answer was never computed


@pytest.mark.parametrize(("tokens", "cached"), [(BLOCK, 0), (BLOCK + 1, BLOCK)])
def test_the_shortest_prompt_that_is_found_again(
    tokens: int, cached: int, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    """A whole block and the last token, which is always computed."""
    engine = make(model, tokenizer)
    for _ in range(2):
        [completion] = engine.generate([list(range(tokens))], SamplingParams(max_tokens=1))
    usage = completion.events[-1].usage
    assert usage is not None
    assert usage.cached_tokens == cached


@pytest.mark.parametrize("page", ["OPERATION.md", "FORK_STATE_CACHE.md"])
def test_the_pages_tell_how_short_a_beginning_is_not_found(page: str) -> None:
    told = " ".join((Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8").split())
    assert f"from {BLOCK} tokens on" in told
    assert f"a prompt of {BLOCK} tokens or fewer is computed whole" in told


def test_other_ratios_share_nothing(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine = make(model, tokenizer)
    for ratio in (None, 1.0, 3.0):
        engine.generate([list(range(40))], SamplingParams(max_tokens=1, fork_ratio=ratio))
    assert engine.stats().prefix_cache_hits_total == 0


@torch.no_grad()
def test_scores_of_a_cached_prompt_are_all_told(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine, prompt = make(model, tokenizer), list(range(40))
    engine.generate([prompt], SamplingParams(max_tokens=1))
    [scored] = engine.generate([prompt], SamplingParams(max_tokens=0, prompt_logprobs=0))
    report = scored.events[0].prompt
    assert report is not None
    log_p = model(torch.tensor([prompt]))[0, :-1].log_softmax(1)
    wanted = log_p.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(report.token_logprobs[1:]), wanted, atol=1e-4, rtol=0)


def grow(index: PrefixIndex[Sequence], state: Sequence, ids: Iterable[int]) -> None:
    state.ids.extend(ids)
    index.grow("k", state)


def test_the_index_finds_the_longest_beginning() -> None:
    index: PrefixIndex[Sequence] = PrefixIndex()
    short, long = Sequence(), Sequence()
    grow(index, short, range(2 * BLOCK))
    for n in range(3 * BLOCK + 3):
        grow(index, long, [n if n < 2 * BLOCK + 5 else 1000 + n])
    assert index.find("k", [*range(2 * BLOCK), 7]) == (long, 2 * BLOCK)
    assert index.find("k", [*range(BLOCK + 3), 999]) == (long, BLOCK + 3)
    assert index.find("k", [*range(BLOCK - 1), 999, 1]) is None
    assert index.find("other", range(2 * BLOCK)) is None
    index.remove(long)
    assert index.find("k", long.ids) is None, "the later state took the earlier one's place"


def test_equal_hashes_of_other_tokens_do_no_harm() -> None:
    """hash(-1) == hash(-2) in CPython, so that the hashes of these blocks agree."""
    index: PrefixIndex[Sequence] = PrefixIndex()
    state = Sequence()
    grow(index, state, [*range(BLOCK), *[-1] * BLOCK])
    assert index.find("k", [*range(BLOCK), *[-2] * BLOCK]) == (state, BLOCK)
