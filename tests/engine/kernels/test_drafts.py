"""Guesses on a device change when tokens come, and nothing else: a draft waits for its step, the rest runs ahead."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.engine.draws import request as request_of
from tests.engine.kernels.conftest import DEVICE, ON_GPU, MakeEngine, cuda_executor, on_kernels
from tests.engine.kernels.test_decode_ahead import KINDS, PROMPTS, assert_alike, params, plain, run
from thoughtbubbles.engine import Completion, Engine, SamplingParams, TokenEvent
from thoughtbubbles.engine.cuda.forward import DEVICE_GUESSING
from thoughtbubbles.engine.lookup import Lookup
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

Requests = list[tuple[str, list[int], SamplingParams]]
GUESSES = 5
TOKENS = 24 if ON_GPU else 7
DRAWN_ALIKE: dict[str, dict[str, object]] = {
    **{kind: settings for kind, settings in KINDS.items() if kind != "recomputed"},
    "unbiased": {"temperature": 0.8, "seed": 9, "min_p": 0.01, "presence_penalty": 0.5, "logprobs": 3},
}


@pytest.fixture(autouse=True)
def guess_whenever_there_is_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether few guesses pay for all that wait for them does not matter to what they change."""
    guessing = replace(DEVICE_GUESSING, least_together=0)
    monkeypatch.setattr("thoughtbubbles.engine.cuda.forward.DEVICE_GUESSING", guessing)


def drafts(alone: dict[str, Completion], requests: Requests, dice: random.Random) -> Callable[..., list[int]]:
    """A look-up that knows what comes: it guesses most of the time, and then often something wrong at the end."""
    whole = {tuple(prompt): [*prompt, *alone[name].token_ids] for name, prompt, _ in requests}

    def guess(_: Lookup, prompt: tuple[int, ...], output: list[int], limit: int) -> list[int]:
        coming = whole[prompt][len(prompt) + len(output) :]
        if dice.random() < 0.3:
            return []
        right = coming[: dice.randint(1, GUESSES)]
        return [*right, *dice.choices(range(257), k=dice.randint(0, 2))][: min(limit, GUESSES)]

    return guess


def check(
    engine: Engine, alone: dict[str, Completion], requests: Requests, monkeypatch: pytest.MonkeyPatch, seed: int = 0
) -> None:
    """The engine, whose guesses are made of what it should draw, draws that. A single guess pays."""
    engine.scheduler.guessing = replace(engine.scheduler.guessing, least=1)
    monkeypatch.setattr(Lookup, "guess", drafts(alone, requests, random.Random(seed)))
    assert_alike(run(engine, requests, seed), alone)
    assert engine.stats().speculation_accepted_tokens_total > 0 == engine.stats().cache_streams


def some_requests() -> Requests:
    settings = [{**each, "max_tokens": TOKENS} for each in DRAWN_ALIKE.values()]
    prompts = [[i, *prompt] for i, prompt in enumerate([*PROMPTS, *PROMPTS])]
    return [(kind, prompt, params(**each)) for kind, each, prompt in zip(DRAWN_ALIKE, settings, prompts, strict=False)]


@pytest.mark.sample(1)
@pytest.mark.parametrize("seed", range(6))
def test_every_kind_of_request_beside_each_other(
    seed: int, small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Requests join at any time, wait for their drafts, and decode ahead again."""
    requests = some_requests()
    alone = run(plain(small_model, tokenizer), requests)
    engine = make_engine(small_model, speculate=GUESSES)
    check(engine, alone, requests, monkeypatch, seed)
    assert engine.stats().speculation_accepted_tokens_total < engine.stats().speculation_proposed_tokens_total


def test_drafts_beside_prompts_that_take_several_steps(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        ("penalised", [5, 9, 3], params(**KINDS["penalised"], max_tokens=5)),
        ("long", [3] * 14, params(temperature=0, max_tokens=1, prompt_logprobs=1)),
        ("fork counts", [1, 2], params(**KINDS["fork counts"], max_tokens=5)),
    ]
    alone = run(plain(small_model, tokenizer), requests)
    engine = on_kernels(make_engine(small_model, speculate=GUESSES, max_batch_size=2), [4, 12])
    assert engine.scheduler.guessing.most_tokens == 6, "4 streams of each token fit into 24 rows"
    check(engine, alone, requests, monkeypatch, seed=2)


def test_a_text_that_repeats_is_guessed_without_help(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    """Steps of six, once the text has repeated itself for as long as a device asks for, which the stand-in does not."""
    requests = [("repeats", [7] * 14, params(temperature=0, logit_bias={7: 100}, max_tokens=20))]
    engine = make_engine(small_model, speculate=GUESSES)
    assert_alike(run(engine, requests), run(plain(small_model, tokenizer), requests))
    stats = engine.stats()
    assert stats.speculation_accepted_tokens_total == stats.speculation_proposed_tokens_total >= 14
    assert cuda_executor(engine).decode._launches <= 2


def test_what_runs_ahead_is_waited_for_before_it_is_guessed(
    small_model: Thoughtbubbles, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(small_model, speculate=GUESSES)
    engine.add("drafted", PROMPTS[0], params(temperature=0, max_tokens=30))
    engine.add("other", PROMPTS[1], params(temperature=0, max_tokens=30))
    monkeypatch.setattr(Lookup, "guess", lambda *_: [])
    while cuda_executor(engine).ahead is None:
        engine.step()
    [drafted, other] = engine.scheduler.running
    other.lookup = None
    monkeypatch.setattr(Lookup, "guess", lambda *_: [200] * GUESSES)
    told = []
    for _ in range(4):
        told.append([event.request_id for event in engine.step()])
        assert ahead_of(engine) == ["other"]
    assert told == [["drafted", "other"], ["other", "drafted"], ["other", "drafted"], ["other", "drafted"]]
    drafted.lookup = None
    engine.step()
    assert ahead_of(engine) == ["drafted", "other"], "it decodes ahead again"


def ahead_of(engine: Engine) -> list[str]:
    flight = cuda_executor(engine).ahead
    return [request.id for request in flight.requests] if flight else []


def test_a_guess_that_breaks_the_numbers_breaks_no_request(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head, which is tied to the embedding, stays whole, and so does decode."""
    from thoughtbubbles.engine.cuda import prefill
    from thoughtbubbles.engine.cuda.kernels.prefill import embed

    requests = [("drafted", PROMPTS[0], params(seed=5, logit_bias={200: -100.0}))]
    alone = run(plain(small_model, tokenizer), requests)
    engine = on_kernels(make_engine(small_model, speculate=GUESSES), [12])
    engine.scheduler.guessing = replace(engine.scheduler.guessing, least=1)
    broken = engine.model.transformer.wte.weight.detach().clone()
    broken[200] = math.nan
    monkeypatch.setattr(prefill, "embed", lambda **given: embed(**{**given, "embedding": broken}))
    monkeypatch.setattr(Lookup, "guess", lambda *args: [7, 200][: args[-1]])
    assert_alike(run(engine, requests), alone)
    stats = engine.stats()
    assert stats.non_finite_logits_total == stats.speculation_accepted_tokens_total == 0
    assert stats.speculation_proposed_tokens_total == 2, "and no guess after that"


def test_requests_that_leave_free_their_pages(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While their token is in flight, after it has landed, and between two drafts."""
    dice, requests = random.Random(3), some_requests()[:5]
    alone = run(plain(small_model, tokenizer), requests)
    monkeypatch.setattr(Lookup, "guess", drafts(alone, requests, dice))
    engine = make_engine(small_model, speculate=GUESSES, prefix_caching=False)
    told: dict[str, list[TokenEvent]] = {}
    for request in requests:
        engine.add(*request)
    for step in range(100):
        for event in engine.step():
            told.setdefault(event.request_id, []).append(event)
        if step in (2, 4) and (running := engine.scheduler.running):
            gone = dice.choice(running).id
            engine.abort(gone)
            told.pop(gone, None)
        engine.cache.check_integrity()
    assert not engine.has_work
    assert engine.cache.use().bytes == 0
    assert_alike(ended := {name: Completion.of(events) for name, events in told.items()}, {n: alone[n] for n in ended})


def test_preemption_of_drafts(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [(str(i), [i + 1] * 12, params(temperature=0.9, seed=i, max_tokens=8)) for i in range(3)]
    alone = run(plain(small_model, tokenizer), requests)
    engine = make_engine(small_model, speculate=GUESSES, cache_bytes=21_500, max_model_len=20, prefix_caching=False)
    check(engine, alone, requests, monkeypatch, seed=1)
    assert engine.stats().preemptions_total > 0


def test_wrong_guesses_are_not_found_as_a_prefix(
    small_model: Thoughtbubbles, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would fill a block of 16 tokens."""
    engine = on_kernels(make_engine(small_model, speculate=GUESSES, max_batch_size=1), [12])
    engine.add("drafted", [*range(12)], params(temperature=0, max_tokens=9, logit_bias={200: -100.0}))
    monkeypatch.setattr(Lookup, "guess", lambda *_: [200] * GUESSES)
    assert [len(engine.step()) for _ in range(2)] == [1, 1]
    [request] = engine.scheduler.running
    assert request.state
    assert request.state.tokens == 13
    assert engine.cache._index._by_hash == {}
    assert engine.stats().speculation_proposed_tokens_total == GUESSES


def test_lanes_after_guesses_are_those_of_requests_that_have_drawn_them(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    sampler = cuda_executor(make_engine(small_model, speculate=GUESSES)).sampler
    guesses, settings = [4, 4, 250], {"presence_penalty": 0.5, "logit_bias": {3: 2.0}, "min_tokens": 9, "top_k": 5}
    drafted = request_of(tokenizer, prompt=(1, 4), **settings)
    drafted.output, drafted.draft = [5], list(guesses)
    other = request_of(tokenizer, prompt=(2,), presence_penalty=1)
    other.draft = [7, 8]
    before, lanes = sampler.assign_drafts([1, 2], [other, drafted])
    assert [*before, *lanes] == list(range(5, 12))
    state, wanted = sampler.state, torch.tensor(lanes, device=DEVICE)
    found = [field.index_select(0, wanted) for field in (state.marks, state.bias)]
    found += [field.index_select(1, wanted) for field in (state.longs, state.words)]
    for i in range(4):
        alike = request_of(tokenizer, prompt=(1, 4), **settings)
        alike.output = [5, *guesses[:i]]
        sampler.state.write(wanted[:1].numpy(force=True), [alike], tokenizer.end_of_text)
        assert torch.equal(found[0][i], state.marks[lanes[0]])
        assert torch.equal(found[1][i], state.bias[lanes[0]])
        assert torch.equal(found[2][:, i], state.longs[:, lanes[0]])
        newest = 4  # which the step reads elsewhere
        for word in set(range(11)) - {newest}:
            assert found[3][word, i] == state.words[word, lanes[0]]


def test_few_guesses_are_refused(small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    from thoughtbubbles.engine.cuda.executor import make_cuda_executor
    from thoughtbubbles.engine.sampler import Sampler

    engine = make_engine(small_model)
    with pytest.raises(ValueError, match="speculate must be 0 or at least 4 on a GPU, not 3"):
        make_cuda_executor(small_model, engine.cache, Sampler(engine.tokenizer), guesses=3)
