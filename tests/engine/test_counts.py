"""Fork counts and usage equal those of the naive whole-sequence forward, in any batch, chunks and preemptions."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thoughtbubbles.engine import Completion, Engine, EngineConfig, SamplingParams, TokenEvent
from thoughtbubbles.model import Selection, Thoughtbubbles, Tokenizer
from thoughtbubbles.model.selection import Rule


@dataclass(frozen=True)
class Case:
    """A request and the engine steps that pass before it is added."""

    prompt: list[int]
    params: SamplingParams
    steps: int


SEQUENCES = [
    [(7 * i * i + 3) % 251 for i in range(40)],
    [(7 * i * i + 3 + i // 20) % 251 for i in range(40)],  # as the first, up to token 20
    [(i * 89 + 5) % 256 for i in range(40)],
    [7] * 40,  # scores tie
]


def params_of(**settings: object) -> SamplingParams:
    """Sampling parameters that ignore end-of-text."""
    return SamplingParams(**{"ignore_eos": True, **settings})  # type: ignore[arg-type]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Many begin alike and can share a prefix; some end before `max_tokens`."""
    params = params_of(
        max_tokens=24 - draw(st.integers(0, 24)),
        temperature=draw(st.sampled_from([0, 1.2])),
        seed=draw(st.integers(0, 1000)),
        stop_token_ids=draw(st.sampled_from([(), tuple(range(20))])),
        return_fork_counts=draw(st.booleans()),
        fork_selection=draw(st.sampled_from(["causal", "causal", "causal", "dynamic"])),
        fork_ratio=draw(st.sampled_from([None, None, None, 1, 1.4])),
    )
    prompt = draw(st.sampled_from(SEQUENCES))[: 40 - draw(st.integers(0, 39))]
    return Case(prompt, params, draw(st.integers(0, 8)))


TIGHT = 155_000
"""Little more than one request of full length needs, so that some are preempted."""
CONFIGS = st.fixed_dictionaries(
    {
        "max_batch_size": st.integers(4, 8),
        "max_prefill_tokens": st.integers(1, 48),
        "cache_bytes": st.sampled_from([TIGHT, TIGHT, 1 << 22]),
        "prefix_caching": st.sampled_from([True, True, False]),
        "page_size": st.just(4),
    }
)


def run(engine: Engine, requests: list[Case]) -> list[Completion]:
    """Add each request after its steps."""
    events: dict[str, list[TokenEvent]] = {str(i): [] for i in range(len(requests))}

    def step() -> None:
        for event in engine.step():
            events[event.request_id].append(event)
        engine.cache.check_integrity()

    for i, case in enumerate(requests):
        for _ in range(case.steps):
            step()
        engine.add(str(i), case.prompt, case.params)
    while engine.has_work:
        step()
    return [Completion.of(each) for each in events.values()]


@torch.no_grad()
def counts_of(model: Thoughtbubbles, ids: list[int], params: SamplingParams) -> list[int]:
    """The oracle: streams of each token after the last fork layer."""
    rule: Rule = params.fork_selection
    _, forks = model(torch.tensor([ids]), rule=rule, ratio=params.fork_ratio, return_forks=True)
    return forks[-1].token_index[0].bincount(minlength=len(ids))[: len(ids)].tolist()


def check(model: Thoughtbubbles, case: Case, completion: Completion) -> None:
    """Everything that a request reports of streams, against the oracle."""
    params, prompt = case.params, case.prompt
    last, usage = completion.events[-1], completion.events[-1].usage
    assert usage is not None
    unseen = bool(completion.token_ids) and not params.return_fork_counts
    ids = [*prompt, *completion.token_ids]
    counts = counts_of(model, ids[: len(ids) - unseen], params)
    assert usage.computed_tokens == len(counts)
    assert usage.fork_count == sum(counts) - len(counts)
    budget = Selection.of(model.config, params.fork_selection, params.fork_ratio).budget(len(counts))
    assert usage.budget_used_ratio == sum(counts) / budget
    assert usage.stream_tokens >= (sum(counts[usage.cached_tokens :]) if params.fork_selection == "causal" else 1)
    if not params.return_fork_counts:
        assert all(event.fork_count is None for event in completion.events)
        return
    report = completion.events[0].prompt
    assert report is not None
    assert list(report.fork_counts) == counts_of(model, prompt, params)
    if params.fork_selection == "causal":
        newest = counts[len(prompt) :]
    else:  # a later token may change what is reported of an earlier one
        newest = [counts_of(model, ids[: n + 1], params)[-1] for n in range(len(prompt), len(ids))]
    assert [event.fork_count for event in completion.events if event.token_id is not None] == newest
    assert (last.token_id is None) == (params.max_tokens == 0)


def test_counts_are_the_oracles(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    """The examples are the same in every run, for rounding noise may decide between nearly equal scores (SPEC.md)."""
    seen: Counter[str] = Counter()

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(config=CONFIGS, requests=st.lists(cases(), min_size=5, max_size=10))
    def examine(config: dict[str, int], requests: list[Case]) -> None:
        engine = Engine(model, tokenizer, EngineConfig(**config))  # type: ignore[arg-type]
        completions = run(engine, requests)
        for case, completion in zip(requests, completions, strict=True):
            check(model, case, completion)
        stats = engine.stats()
        usages = [completion.events[-1].usage for completion in completions]
        assert stats.stream_tokens_total == sum(usage.stream_tokens for usage in usages if usage)
        assert (stats.cache_bytes, stats.cache_streams) == (0, 0)
        seen["preemptions"] += stats.preemptions_total
        seen["prefixes"] += stats.prefix_cache_hits_total
        seen["chunked"] += any(len(case.prompt) > config["max_prefill_tokens"] for case in requests)

    examine()
    assert min(seen[name] for name in ("preemptions", "prefixes", "chunked")) > 5, seen


def test_a_request_that_generates_nothing_ends_when_its_whole_prompt_is_computed(
    model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    engine = Engine(model, tokenizer, EngineConfig(page_size=4, max_prefill_tokens=8))
    prompt = [7 * i % 251 for i in range(40)]
    engine.add("a", prompt, params_of(max_tokens=0))
    assert [engine.step() for _ in range(4)] == [[]] * 4
    [event] = engine.step()
    assert event.usage is not None
    assert event.usage.stream_tokens == sum(counts_of(model, prompt, params_of()))


def test_a_preempted_request_reports_its_own_tokens_count(
    model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """Preempted with a pending event, it is prefilled again in chunks; only the last chunk ends with that token."""
    config = EngineConfig(max_batch_size=8, page_size=4, cache_bytes=250_000, max_prefill_tokens=8)
    engine = Engine(model, tokenizer, config)
    params = params_of(max_tokens=24, temperature=0, return_fork_counts=True)
    completions = engine.generate(prompts[:8], params)
    assert engine.stats().preemptions_total > 3
    for prompt, completion in zip(prompts, completions, strict=False):
        check(model, Case(prompt, params, 0), completion)


@pytest.mark.parametrize(("settings", "computed"), [
    ({"max_tokens": 0}, 20),
    ({"max_tokens": 1}, 20),
    ({"max_tokens": 5}, 24),
    ({"max_tokens": 5, "return_fork_counts": True}, 25),
    ({"max_tokens": 5, "fork_selection": "dynamic"}, 24),
    ({"max_tokens": 5, "fork_selection": "dynamic", "return_fork_counts": True}, 25),
])  # fmt: skip
def test_the_last_token_counts_only_where_its_streams_are_computed(
    settings: dict[str, object], computed: int, engine: Engine, model: Thoughtbubbles
) -> None:
    params = params_of(temperature=0, **settings)
    [completion] = engine.generate([list(range(20))], params)
    usage = completion.events[-1].usage
    assert usage is not None
    assert usage.computed_tokens == computed
    check(model, Case(list(range(20)), params, 0), completion)
