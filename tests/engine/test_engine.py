"""What a caller may count on: ends, seeds, aborts, refusals, and memory that comes back."""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

from tests.engine.conftest import MakeModel
from thoughtbubbles.engine import (
    Completion,
    Engine,
    EngineConfig,
    EngineError,
    InvalidRequest,
    QueueFull,
    SamplingParams,
    TokenEvent,
)
from thoughtbubbles.engine.config import ExecutorKind
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

END_OF_TEXT = 256


def complete(engine: Engine, prompt: list[int], **settings: object) -> Completion:
    [completion] = engine.generate([prompt], SamplingParams(**settings))  # type: ignore[arg-type]
    return completion


def drain(engine: Engine) -> dict[str, list[TokenEvent]]:
    told: dict[str, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step():
            told.setdefault(event.request_id, []).append(event)
    return told


def test_length_ends_a_completion(engine: Engine) -> None:
    completion = complete(engine, [1, 2], max_tokens=5, ignore_eos=True)
    assert (len(completion.token_ids), completion.finish_reason, completion.stop_reason) == (5, "length", None)


def test_numbers_of_numpy_are_settings_too(engine: Engine) -> None:
    settings = {"max_tokens": 5, "seed": 7, "top_k": 3, "min_tokens": 5, "temperature": 0.5}
    other = {name: np.asarray(value)[()] for name, value in settings.items()}
    other |= {"logit_bias": {np.int64(3): np.float32(0)}, "stop_token_ids": [np.int64(256)], "stop": ["never"]}
    assert complete(engine, [1, 2], **other).token_ids == complete(engine, [1, 2], **settings).token_ids


def test_end_of_text_ends_it_and_is_counted(engine: Engine) -> None:
    completion = complete(engine, [1, 2], max_tokens=5, logit_bias={END_OF_TEXT: 100})
    assert completion.token_ids == (END_OF_TEXT,)
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("", "stop", None)
    usage = completion.events[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 1)


def test_end_of_text_is_text_when_ignored(engine: Engine) -> None:
    completion = complete(engine, [1], max_tokens=2, logit_bias={END_OF_TEXT: 100}, ignore_eos=True)
    assert (completion.text, completion.finish_reason) == ("<|endoftext|>" * 2, "length")


def test_a_stop_token_ends_it_without_its_text(engine: Engine) -> None:
    completion = complete(engine, [1], max_tokens=5, logit_bias={65: 100}, stop_token_ids=(65,))
    assert (completion.token_ids, completion.text, completion.stop_reason) == ((65,), "", 65)


def test_a_stop_string_over_several_tokens(engine: Engine) -> None:
    completion = complete(engine, [1], max_tokens=9, logit_bias={65: 100}, stop=("AAA",))
    assert (len(completion.token_ids), completion.text, completion.stop_reason) == (3, "", "AAA")


def test_nothing_ends_it_before_min_tokens(engine: Engine) -> None:
    bias = {END_OF_TEXT: 100.0, 65: 90.0, 66: 80.0}
    completion = complete(engine, [1], max_tokens=9, logit_bias=bias, stop_token_ids=(65,), stop=("B",), min_tokens=3)
    assert completion.token_ids == (66, 66, 66)
    assert (completion.text, completion.stop_reason) == ("BB", "B")


def test_nothing_is_generated_for_max_tokens_0(engine: Engine) -> None:
    completion = complete(engine, [1, 2, 3], max_tokens=0, prompt_logprobs=0)
    assert (completion.token_ids, completion.finish_reason) == ((), "length")
    assert completion.events[0].prompt is not None


def test_the_context_may_be_filled_to_its_end(engine: Engine) -> None:
    completion = complete(engine, [1] * 63, max_tokens=1, ignore_eos=True, return_fork_counts=True)
    assert len(completion.token_ids) == 1
    with pytest.raises(InvalidRequest, match="context is 64"):
        complete(engine, [1] * 63, max_tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["causal", "dynamic"])
def test_fork_counts_are_each_tokens_own(rule: str, engine: Engine, model: Thoughtbubbles) -> None:
    """Under `causal` a token's count is final; under `dynamic` it is reported as of when the token was newest."""
    settings = {"max_tokens": 6, "ignore_eos": True, "return_fork_counts": True, "fork_selection": rule}
    completion = complete(engine, [5, 6, 7], **settings)
    tokens = [5, 6, 7, *completion.token_ids]
    for n, event in enumerate(completion.events, start=4):
        _, forks = model(torch.tensor([tokens[:n]]), rule=rule, return_forks=True)  # type: ignore[call-overload]
        assert event.fork_count == (forks[-1].token_index == n - 1).sum()


@pytest.mark.parametrize(("rule", "requests"), [("causal", 24), ("dynamic", 9)])  # `dynamic` takes its time
def test_a_seed_gives_the_same_alone_in_a_crowd_and_after_preemption(
    rule: str, requests: int, model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    prompts = prompts[:requests]
    settings = {"max_tokens": 20, "ignore_eos": True, "temperature": 1.3, "top_p": 0.9, "fork_selection": rule}
    roomy = Engine(model, tokenizer, EngineConfig(max_batch_size=8, page_size=4, cache_bytes=1 << 22))
    tight = Engine(model, tokenizer, EngineConfig(max_batch_size=8, page_size=4, cache_bytes=250_000))
    alone = [complete(roomy, p, seed=i, **settings).token_ids for i, p in enumerate(prompts)]
    for engine in (roomy, tight):
        for i, prompt in enumerate(prompts):
            engine.add(str(i), prompt, SamplingParams(seed=i, **settings))  # type: ignore[arg-type]
        told = drain(engine)
        assert [Completion.of(told[str(i)]).token_ids for i in range(len(prompts))] == alone
    assert rule == "dynamic" or tight.stats().preemptions_total > 0


def test_without_a_seed_requests_differ(engine: Engine) -> None:
    completions = engine.generate([[1]] * 4, SamplingParams(max_tokens=12, temperature=2))
    assert len({c.token_ids for c in completions}) == 4


def test_logprobs_are_of_the_raw_distribution(engine: Engine, model: Thoughtbubbles) -> None:
    completion = complete(engine, [1, 2], max_tokens=1, logit_bias={65: 100}, temperature=0.1, logprobs=3)
    [event] = completion.events
    with torch.no_grad():
        log_p = model(torch.tensor([[1, 2]]))[0, -1].log_softmax(0)
    assert event.logprob == pytest.approx(log_p[65].item(), abs=1e-5)
    assert [i for i, _ in event.top_logprobs] == log_p.topk(3).indices.tolist()


def test_one_log_probability_may_be_asked_alone(engine: Engine) -> None:
    [event] = complete(engine, [1, 2], max_tokens=1, logprobs=0).events
    assert event.logprob is not None
    assert event.top_logprobs == ()


def test_padding_of_the_vocabulary_is_never_drawn(make_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(make_model(vocab_size=320), tokenizer)
    completion = complete(engine, [1], max_tokens=60, temperature=2, ignore_eos=True)
    assert max(completion.token_ids) < 257


def test_random_admissions_and_aborts_leave_nothing_behind(engine: Engine, prompts: list[list[int]]) -> None:
    dice = random.Random(7)
    alive: set[str] = set()
    outcomes: Counter[str] = Counter()
    for n in range(200):
        if dice.random() < 0.6:
            rule = dice.choice(["causal", "causal", "dynamic"])
            params = SamplingParams(max_tokens=dice.randint(0, 12), fork_ratio=dice.uniform(1, 8), fork_selection=rule,
                                    return_fork_counts=dice.random() < 0.3)  # type: ignore[arg-type]  # fmt: skip
            engine.add(str(n), dice.choice(prompts), params)
            alive.add(str(n))
        if alive and dice.random() < 0.3:
            victim = dice.choice(sorted(alive))
            assert engine.abort(victim)
            assert not engine.abort(victim)
            alive.remove(victim)
            outcomes["aborted"] += 1
        for event in engine.step():
            assert event.request_id in alive, "an aborted request is told nothing more"
            if event.finish_reason:
                alive.remove(event.request_id)
                outcomes["finished"] += 1
        engine.cache.check_integrity()
        stats = engine.stats()
        assert stats.num_requests_running + stats.num_requests_waiting == len(alive)
    outcomes["finished"] += sum(told[-1].finish_reason is not None for told in drain(engine).values())
    assert outcomes["aborted"] > 20
    assert outcomes["finished"] > 20
    assert (engine.stats().cache_bytes, engine.stats().cache_streams) == (0, 0)


def test_totals_are_the_sums_over_requests(engine: Engine, prompts: list[list[int]]) -> None:
    completions = engine.generate(prompts, SamplingParams(max_tokens=7))
    usages = [c.events[-1].usage for c in completions]
    stats = engine.stats()
    assert stats.prompt_tokens_total == sum(u.prompt_tokens for u in usages if u)
    assert stats.generation_tokens_total == sum(u.completion_tokens for u in usages if u)
    assert stats.stream_tokens_total == sum(u.stream_tokens for u in usages if u)


def test_a_step_that_computes_nothing_has_no_report(engine: Engine) -> None:
    """That of the step before would be counted again."""
    complete(engine, [1, 2], max_tokens=2)
    assert engine.last_step is not None
    engine.pause_admission()
    engine.add("waits", [1, 2], SamplingParams())
    assert engine.step() == []
    assert engine.last_step is None


def test_prompts_of_requests_that_never_start_are_not_counted(engine: Engine) -> None:
    engine.add("dropped", [1, 2, 3], SamplingParams())
    engine.abort("dropped")
    complete(engine, [1, 2], max_tokens=2)
    assert engine.stats().prompt_tokens_total == 2


def test_a_prompt_that_is_computed_again_counts_once(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, EngineConfig(page_size=4, cache_bytes=250_000))
    engine.generate([[n] * 20 for n in range(6)], SamplingParams(max_tokens=40, ignore_eos=True))
    stats = engine.stats()
    assert stats.preemptions_total > 0
    assert stats.prompt_tokens_total == 6 * 20


@torch.no_grad()
def test_fork_totals_are_the_models(engine: Engine, model: Thoughtbubbles) -> None:
    prompt = list(range(40))
    engine.generate([prompt], SamplingParams(max_tokens=0))
    _, forks = model(torch.tensor([prompt]), return_forks=True)
    stats, arrived = engine.stats(), 40
    for fork in forks:
        here = fork.token_index[0] < 40
        copies = int((fork.candidate[0][here] % 2 == 0).sum())
        assert stats.forks_total[fork.layer] == copies
        assert stats.fork_deletions_total[fork.layer] == arrived - (int(here.sum()) - copies)
        arrived = int(here.sum())


def test_a_full_queue_says_so(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, EngineConfig(max_waiting_streams=4))
    for name in "ab":
        engine.add(name, [1], SamplingParams())
    with pytest.raises(QueueFull):
        engine.add("c", [1], SamplingParams())
    assert set(drain(engine)) == {"a", "b"}


@pytest.mark.parametrize(
    ("prompt", "settings", "param", "code"),
    [
        ([], {}, "prompt", "invalid_value"),
        ([257], {}, "prompt", "invalid_token_id"),
        ([-1], {}, "prompt", "invalid_token_id"),
        ([1], {"logit_bias": {999: 1.0}}, "logit_bias", "invalid_token_id"),
        ([1], {"stop_token_ids": (257,)}, "stop_token_ids", "invalid_token_id"),
        ([1], {"stop_token_ids": tuple(range(257)), "min_tokens": 1}, "stop_token_ids", "invalid_value"),
        ([1], {"max_tokens": 64}, "max_tokens", "context_length_exceeded"),
        ([1], {"fork_ratio": 8.5}, "fork_ratio", "invalid_value"),
        ([1], {"max_tokens": 2.5}, "max_tokens", "invalid_type"),
        ([1], {"min_tokens": 1.0}, "min_tokens", "invalid_type"),
        ([1], {"logprobs": 2.5}, "logprobs", "invalid_type"),
        ([1], {"seed": 1.5}, "seed", "invalid_type"),
        ([1], {"temperature": "0.7"}, "temperature", "invalid_type"),
        ([1], {"top_p": None}, "top_p", "invalid_type"),
        ([1], {"stop": "abc"}, "stop", "invalid_type"),
        ([1], {"stop": ("a", 5)}, "stop", "invalid_type"),
        ([1], {"stop": None}, "stop", "invalid_type"),
        ([1], {"stop_token_ids": ("5",)}, "stop_token_ids", "invalid_type"),
        ([1], {"stop_token_ids": (1.5,)}, "stop_token_ids", "invalid_type"),
        ([1], {"stop_token_ids": b"5"}, "stop_token_ids", "invalid_type"),
        ([1], {"logit_bias": {"5": 1.0}}, "logit_bias", "invalid_type"),
        ([1], {"logit_bias": {5: "1"}}, "logit_bias", "invalid_type"),
        ([1], {"logit_bias": [5]}, "logit_bias", "invalid_type"),
        ([1], {"fork_bias": ({"layer": 1},)}, "fork_bias", "invalid_type"),
        ([1], {"grammar": {"type": "object"}}, "grammar", "invalid_type"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    engine: Engine, prompt: list[int], settings: dict[str, object], param: str, code: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.add("a", prompt, SamplingParams(**settings))  # type: ignore[arg-type]
    assert (caught.value.param, caught.value.code) == (param, code)
    assert not engine.has_work


def test_forks_beyond_the_whole_cache_are_refused(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, EngineConfig(page_size=4, cache_bytes=200_000))
    complete(engine, [1] * 50, max_tokens=14)
    with pytest.raises(InvalidRequest, match="fork-state cache"):
        engine.add("a", [1] * 50, SamplingParams(max_tokens=14, fork_ratio=8))


def test_a_refused_prompt_leaves_generate_without_work(engine: Engine) -> None:
    with pytest.raises(EngineError):
        engine.generate([[1], [999]], SamplingParams())
    assert not engine.has_work


@pytest.mark.parametrize(
    "setting",
    ["max_batch_size", "max_waiting_streams", "max_model_len", "max_prefill_tokens", "page_size", "cache_bytes"],
)
def test_engine_settings_name_themselves(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        EngineConfig(**{setting: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("cache_bytes", 2e9, "a whole number, not 2000000000.0"),
        ("max_batch_size", None, "a whole number, not None"),
        ("page_size", "16", "a whole number, not '16'"),
        ("max_model_len", 32.0, "a whole number, not 32.0"),
        ("speculate", 2.5, "a whole number, not 2.5"),
        ("max_client_share", "0.5", "a number, not '0.5'"),
    ],
)
def test_an_engine_setting_of_another_type_is_refused_by_name(setting: str, value: object, wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{setting} must be {wanted}")):
        EngineConfig(**{setting: value})  # type: ignore[arg-type]


def test_engine_settings_may_be_numbers_of_numpy(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    config = EngineConfig(cache_bytes=np.int64(1 << 22), page_size=np.int32(4), max_client_share=np.float64(0.5))  # type: ignore[arg-type]
    assert complete(Engine(model, tokenizer, config), [1, 2], max_tokens=2).token_ids


@pytest.mark.parametrize(("asked", "tokens"), [(None, 512), (7, 7)])
def test_a_step_of_torchs_operators_takes_in_512_tokens_unless_told(
    asked: int | None, tokens: int, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    config = EngineConfig(max_prefill_tokens=asked, max_model_len=600, page_size=4, executor="portable")
    engine = Engine(model, tokenizer, config)
    assert engine.max_prefill_tokens == tokens
    engine.add("a", [1] * 599, SamplingParams(max_tokens=1))
    assert engine.scheduler.schedule().num_tokens == [tokens]


def test_a_cache_too_small_for_one_request_is_refused(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="cache_bytes must be at least"):
        Engine(model, tokenizer, EngineConfig(cache_bytes=1000))


@pytest.mark.parametrize("executor", ["native", "portable"])
def test_the_smallest_cache_of_one_page_a_segment_serves(
    executor: ExecutorKind, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    settings = {"max_model_len": 8, "page_size": 64, "executor": executor}
    with pytest.raises(ValueError, match="cache_bytes must be at least") as refused:
        Engine(model, tokenizer, EngineConfig(cache_bytes=1, **settings))  # type: ignore[arg-type]
    least = next(int(word) for word in str(refused.value).split() if word.isdigit())
    engine = Engine(model, tokenizer, EngineConfig(cache_bytes=least, **settings))  # type: ignore[arg-type]
    assert [segment.pages for segment in engine.cache.segments] == [1, 1, 1, 1]
    assert len(complete(engine, [1] * 3, max_tokens=5, ignore_eos=True).token_ids) == 5


def test_wrong_page_counts_are_found_and_counted(engine: Engine) -> None:
    engine.generate([[1, 2, 3] * 9], SamplingParams(max_tokens=3))
    assert engine.check_integrity() is None
    engine.cache.segments[2].free -= 1
    assert engine.check_integrity() == "segment 2: pages miscounted"
    stats = engine.stats()
    assert (stats.cache_integrity_checks_total, stats.cache_integrity_failures_total) == (2, 1)
