"""Guessed tokens change when tokens come, and nothing else: neither the tokens, nor their reports, nor the cache."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import chain

import pytest
import torch

from tests.engine.conftest import MakeModel
from tests.engine.draws import some_settings
from tests.engine.embedded import embed
from tests.engine.test_oracle import SHAPES
from thoughtbubbles.engine import Completion, Engine, EngineConfig, SamplingParams, TokenEvent
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.config import ExecutorKind
from thoughtbubbles.engine.lookup import MATCH, Guessing, Lookup
from thoughtbubbles.model import Selection, Thoughtbubbles, Tokenizer

CYCLE = [11, 12, 13, 14, 15]
FEW = dict.fromkeys(CYCLE, 9.0)
"""A bias after which few tokens are drawn, so that what is drawn was drawn before."""


@pytest.fixture(params=["native", "portable"])
def executor(request: pytest.FixtureRequest) -> ExecutorKind:
    kind: ExecutorKind = request.param
    return kind


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine(model: Thoughtbubbles, tokenizer: Tokenizer, executor: ExecutorKind) -> MakeEngine:
    def make(speculate: int = 6, **settings: object) -> Engine:
        sizes = {"max_batch_size": 4, "page_size": 4, "cache_bytes": 1 << 22, "executor": executor, **settings}
        return Engine(model, tokenizer, EngineConfig(speculate=speculate, **sizes))  # type: ignore[arg-type]

    return make


def guess(engine: Engine, monkeypatch: pytest.MonkeyPatch, tokens: Callable[[list[int], int], list[int]]) -> None:
    """Let `tokens` guess in place of the look-up, from prompt and output together and the most guesses."""

    def draft(_: Lookup, prompt: list[int], output: list[int], limit: int) -> list[int]:
        return tokens([*prompt, *output], min(limit, engine.config.speculate))

    monkeypatch.setattr(Lookup, "guess", draft)


def guess_carelessly(monkeypatch: pytest.MonkeyPatch, dice: random.Random) -> None:
    """Let guesses that were not looked up follow some of those that were."""
    look_up = Lookup.guess

    def draft(self: Lookup, prompt: list[int], output: list[int], limit: int) -> list[int]:
        found = look_up(self, prompt, output, limit)
        return [*found, *dice.choices(CYCLE, k=dice.choice([0, 0, 1, 4]))][:limit]

    monkeypatch.setattr(Lookup, "guess", draft)


def serve(engine: Engine, requests: list[tuple[list[int], SamplingParams]], seed: int = 0) -> list[list[TokenEvent]]:
    """Return the events of each request. They come at random times; the cache is checked after every step."""
    dice, waiting = random.Random(seed), list(enumerate(requests))
    told: list[list[TokenEvent]] = [[] for _ in requests]
    while waiting or engine.has_work:
        if waiting and dice.random() < 0.6:
            i, (prompt, params) = waiting.pop(0)
            engine.add(str(i), prompt, params)
        for event in engine.step():
            told[int(event.request_id)].append(event)
        engine.cache.check_integrity()
    assert engine.stats().cache_streams == 0
    return told


def plain(events: list[TokenEvent]) -> list[tuple[object, ...]]:
    """What a client sees of events, but for numbers whose last bits depend on what is computed together."""
    return [
        (each.token_id, each.text, each.fork_count, each.finish_reason, each.stop_reason, each.logprob is None,
         [token for token, _ in each.top_logprobs], each.usage and
         (each.usage.completion_tokens, each.usage.computed_tokens, each.usage.fork_count))
        for each in events
    ]  # fmt: skip


def logprobs(events: list[TokenEvent]) -> torch.Tensor:
    return torch.tensor([each.logprob for each in events if each.logprob is not None], dtype=torch.float64)


def few_bytes(model: Thoughtbubbles, page_size: int) -> int:
    """Memory for half as much again as one request of full length takes."""
    tokens, like = model.config.block_size, torch.zeros(())
    cache = ForkCache(model.config, max_tokens=tokens, total_bytes=1 << 24, page_size=page_size, like=like)
    pages = cache.pages_needed(Selection.of(model.config, "causal"), tokens)
    return 3 * sum(n * segment.page_bytes for n, segment in zip(pages, cache.segments, strict=True)) // 2


def random_request(dice: random.Random, most_ratio: float) -> tuple[list[int], SamplingParams]:
    """A prompt of few different tokens, and any fields that change what is drawn."""
    words = [dice.sample(range(40), 4) for _ in range(3)]
    prompt = list(chain.from_iterable(dice.choice(words) for _ in range(dice.randint(1, 8))))[: dice.randint(1, 18)]
    settings: dict[str, object] = {"temperature": dice.choice([0, 0.05, 0.7]), "logit_bias": dice.choice([FEW, {}])}
    if dice.random() < 0.7:
        settings |= some_settings(dice, 257)
    if dice.random() < 0.5:
        settings["logit_bias"] = FEW
    if dice.random() < 0.3:
        settings["stop"] = tuple(bytes(dice.choices(CYCLE, k=dice.randint(1, 3))).decode() for _ in range(2))
        settings["include_stop"] = dice.random() < 0.5
    return prompt, SamplingParams(
        **{"max_tokens": dice.randint(1, 30), "seed": dice.getrandbits(30), "ignore_eos": dice.random() < 0.7,
           "return_fork_counts": dice.random() < 0.3, "fork_ratio": dice.choice([None, 1, dice.uniform(1, most_ratio)]),
           "fork_selection": dice.choice(["causal"] * 9 + ["dynamic"]), **settings}
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.numeric
@pytest.mark.sample(20)
@pytest.mark.parametrize("seed", range(200))
def test_random_mixes_give_the_tokens_that_no_guess_gives(
    seed: int, make_model: MakeModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six requests a mix, with any fields, that come at any time, also into a cache that is too small for them."""
    dice = random.Random(seed)
    guess_carelessly(monkeypatch, random.Random(seed))
    model = make_model(**SHAPES[list(SHAPES)[seed % len(SHAPES)]])
    page_size = dice.choice([1, 4, 16])
    settings = {"max_batch_size": dice.randint(1, 6), "page_size": page_size, "cache_bytes":
                dice.choice([few_bytes(model, page_size), 1 << 22]), "prefix_caching": dice.random() < 0.8,
                "max_prefill_tokens": dice.choice([5, 64]),
                "executor": dice.choice(["native", "portable"])}  # fmt: skip
    requests = [random_request(dice, min(2, model.config.max_ratio)) for _ in range(6)]
    engines = [Engine(model, tokenizer, EngineConfig(speculate=n, **settings)) for n in (0, dice.randint(1, 9))]
    alone, guessed = (serve(engine, requests, seed) for engine in engines)
    for wanted, told in zip(alone, guessed, strict=True):
        assert plain(told) == plain(wanted)
        torch.testing.assert_close(logprobs(told), logprobs(wanted), atol=1e-4, rtol=0)


def generate(engine: Engine, prompt: list[int], **settings: object) -> Completion:
    params = {"max_tokens": 24, "temperature": 0.8, "seed": 5, "ignore_eos": True, **settings}
    [completion] = engine.generate([prompt], SamplingParams(**params))  # type: ignore[arg-type]
    engine.cache.check_integrity()
    return completion


def guess_right(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, prompt: list[int], make_engine: MakeEngine, **settings: object
) -> Completion:
    """Let every guess be right for this request, which is returned as it is without guesses."""
    alone = generate(make_engine(0), prompt, **settings)
    whole = [*prompt, *alone.token_ids]
    guess(engine, monkeypatch, lambda tokens, most: whole[len(tokens) :][:most])
    return alone


def test_what_is_guessed_right_takes_fewer_steps(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(6)
    alone = guess_right(engine, monkeypatch, [1, 2, 3], make_engine)
    engine.add("a", [1, 2, 3], SamplingParams(max_tokens=24, temperature=0.8, seed=5, ignore_eos=True))
    sizes = []
    while engine.has_work:
        sizes.append(len(engine.step()))
    stats = engine.stats()
    assert sizes == [1, 7, 7, 7, 2], "the prompt's token, and then six guesses and the token after them"
    assert stats.speculation_proposed_tokens_total == stats.speculation_accepted_tokens_total == 19
    assert stats.generation_tokens_total == len(alone.token_ids) == 24


def test_a_text_that_repeats_is_guessed_without_help(make_engine: MakeEngine) -> None:
    engine = make_engine(6)
    repeated = generate(engine, CYCLE * 4, logit_bias={12: 100.0}, max_tokens=40)
    assert repeated.token_ids == (12,) * 40
    assert engine.stats().speculation_accepted_tokens_total > 25


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("settings", [{}, {"return_fork_counts": True}, {"logprobs": 2}], ids=str)
def test_a_stop_among_right_guesses_ends_there(
    length: int, settings: dict[str, object], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, alike = make_engine(9), {"logit_bias": dict.fromkeys(CYCLE, 100.0), **settings}
    alone = guess_right(engine, monkeypatch, [1, 2, 3], make_engine, **alike)
    stop = bytes(alone.token_ids[5 : 5 + length])
    latest = max(set(alone.token_ids), key=alone.token_ids.index)
    for how in ({"stop": (stop.decode(),)}, {"stop": (stop.decode(),), "include_stop": True},
                {"stop_token_ids": (latest,)}):  # fmt: skip
        stopped = generate(engine, [1, 2, 3], **alike, **how)
        wanted = generate(make_engine(0), [1, 2, 3], **alike, **how)
        assert stopped.finish_reason == "stop"
        assert plain(list(stopped.events)) == plain(list(wanted.events))
    assert engine.stats().speculation_accepted_tokens_total > 0


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_max_tokens_are_not_exceeded(max_tokens: int, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(4)
    alone = guess_right(engine, monkeypatch, [1, 2, 3], make_engine, max_tokens=max_tokens)
    assert generate(engine, [1, 2, 3], max_tokens=max_tokens).token_ids == alone.token_ids
    assert len(alone.token_ids) == max_tokens


def test_wrong_guesses_leave_nothing_in_the_cache(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is that of an engine that guesses nothing, after every step; no wrong token is found as a prefix."""
    prompts = [[1, 2, 3], [4] * 15, [*range(30)]]
    engine, other = make_engine(5), make_engine(0)
    params = SamplingParams(max_tokens=30, temperature=0.8, seed=5, ignore_eos=True, logit_bias={200: -100.0})
    for each in (engine, other):
        for i, prompt in enumerate(prompts):
            each.add(str(i), prompt, params)
    guess(engine, monkeypatch, lambda _, most: [200] * most)
    while engine.has_work:
        assert [event[:3] for event in engine.step()] == [event[:3] for event in other.step()]
        engine.cache.check_integrity()
        for name in ("tokens", "streams", "kappa"):
            assert getattr(engine.cache.ledger, name).tolist() == getattr(other.cache.ledger, name).tolist(), name
        for row, tokens in enumerate(engine.cache.ledger.tokens):
            ends = [each.cache.ledger.ends[row, :, :tokens].tolist() for each in (engine, other)]
            assert ends[0] == ends[1]
        assert engine.cache.use() == other.cache.use() or engine.executor.name != "portable", "native reserves pages"
    stats = engine.stats()
    assert stats.speculation_accepted_tokens_total == 0 < stats.speculation_proposed_tokens_total
    assert all(200 not in state.ids for state in engine.cache._retained)
    engine.cache.clear()
    assert engine.cache._index._by_hash == {}


def test_right_guesses_are_found_as_a_prefix(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(9)
    alone = guess_right(engine, monkeypatch, [1, 2, 3], make_engine, max_tokens=50)
    generate(engine, [1, 2, 3], max_tokens=50)
    again = generate(engine, [1, 2, 3, *alone.token_ids[:45]], max_tokens=1)
    assert again.events[-1].usage is not None
    assert again.events[-1].usage.cached_tokens == 47


def test_a_guess_that_breaks_the_numbers_breaks_no_request(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken guess comes last: what was drawn before it counts, and it is not drawn."""
    engine, other = make_engine(5), make_engine(0)
    for each in (engine, other):
        embed(monkeypatch, each.model, 200, math.nan)
    guess(engine, monkeypatch, lambda _, most: [7, 200][:most])
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=5, ignore_eos=True, logit_bias={200: -100.0})
    requests = [(prompt, params) for prompt in ([1, 2, 3], [4] * 9, [*range(30)])]
    assert list(map(plain, serve(engine, requests))) == list(map(plain, serve(other, requests)))
    assert engine.stats().non_finite_logits_total == 0 < engine.stats().speculation_proposed_tokens_total


def test_a_request_that_leaves_frees_its_pages(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(5)
    guess(engine, monkeypatch, lambda _, most: [200] * most)
    engine.add("a", [1, 2, 3], SamplingParams(max_tokens=30, temperature=0, ignore_eos=True))
    for _ in range(4):
        engine.step()
    engine.abort("a")
    assert engine.stats().cache_bytes == 0
    engine.cache.check_integrity()


@pytest.mark.parametrize("rule", ["dynamic", "fixed"])
def test_rules_that_revise_do_not_speculate(
    rule: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(5)
    guess(engine, monkeypatch, lambda _, most: [200] * most)
    wanted = generate(make_engine(0), [1, 2, 3], fork_selection=rule)
    assert generate(engine, [1, 2, 3], fork_selection=rule).token_ids == wanted.token_ids
    assert engine.stats().speculation_proposed_tokens_total == 0


@pytest.mark.parametrize("speculate", [-1, 33])
def test_the_setting_names_its_limits(speculate: int) -> None:
    with pytest.raises(ValueError, match="speculate must be from 0 to 32"):
        EngineConfig(speculate=speculate)


def test_the_look_up_guesses_what_followed_the_latest_match() -> None:
    dice = random.Random(0)
    for _ in range(200):
        most, prompt, output = dice.randint(1, 9), [dice.randrange(2) for _ in range(dice.randint(1, 20))], list[int]()
        lookup = Lookup(most)
        for _ in range(20):
            limit = dice.randint(0, 9)
            if dice.random() < 0.8:
                assert lookup.guess(prompt, output, limit) == naive_guess([*prompt, *output], min(most, limit))
            output.append(dice.randrange(2))


def test_a_draft_is_as_long_as_it_may_be_where_a_guess_costs_no_time() -> None:
    guessing = Guessing(match=3, gradual=False, least=2)
    lookup, prompt = Lookup(5, guessing), [*range(9), 1, 2]
    assert lookup.guess(prompt, [], 5) == [], "two tokens match"
    assert lookup.guess(prompt, [3], 5) == [4, 5, 6, 7, 8]
    assert lookup.guess(prompt, [3], 2) == [4, 5]
    assert lookup.guess(prompt, [3], 1) == [], "a single guess does not pay"
    assert lookup.guess(prompt, [3, 9, 9, 9, 9], 5) == [9] * 5


def test_after_drafts_that_did_not_pay_more_tokens_have_to_match() -> None:
    text = [*range(100, 120), 0]

    def matches(number: int, learnt: Sequence[int]) -> bool:
        lookup = Lookup(4, Guessing(match=2, first_match=3, pays=2, gradual=False))
        for right in learnt:
            lookup.learn(right)
        return bool(lookup.guess(text, text[19 - number : 19], 4))

    learnt = [1, 0, 2, 1, 4]
    least = [next(n for n in range(1, 20) if matches(n, learnt[:drafts])) for drafts in range(6)]
    assert least == [3, 6, 12, 2, 4, 2]


def naive_guess(tokens: list[int], most: int) -> list[int]:
    """What `Lookup.guess` returns, by going through all places from the last to the first."""
    for start in range(len(tokens) - 1, MATCH - 1, -1):
        matching = next((i for i in range(start) if tokens[start - 1 - i] != tokens[-1 - i]), start)
        if matching >= MATCH:
            whole = list(tokens)
            for at in range(start, start + min(most, matching - MATCH + 1)):
                whole.append(whole[at])
            return whole[len(tokens) :]
    return []
