"""An engine that runs ahead of its host reports the same events as one that waits for every step."""

import random

import pytest
import torch

from tests.engine.kernels.conftest import ON_GPU, MakeEngine, cuda_executor, on_kernels
from thoughtbubbles.engine import Completion, Engine, EngineConfig, SamplingParams, TokenEvent
from thoughtbubbles.engine.batch import Plan
from thoughtbubbles.engine.prompt_report import PromptReport, TopLogprobs
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

TOKENS = 24 if ON_GPU else 4
PROMPTS = [[5, 9, 3, 3, 3, 7], [1, 2], [8] * 7, [40, 41, 42, 43, 44], [5, 9, 3, 3, 3, 7, 11]]
KINDS: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 0.9, "seed": 3},
    "fork counts": {"temperature": 0.9, "seed": 3, "return_fork_counts": True},
    "restricted": {"temperature": 0.9, "seed": 3, "top_p": 0.8},
    "scored": {"temperature": 0, "logprobs": 2},
    "penalised": {
        "temperature": 0.7,
        "seed": 4,
        "repetition_penalty": 1.4,
        "frequency_penalty": 0.5,
        "logit_bias": {7: 3},
    },
    "kept from ending": {
        "temperature": 0.9,
        "seed": 5,
        "min_tokens": 3,
        "stop_token_ids": (1, 2, 3),
        "ignore_eos": False,
        "top_k": 40,
        "min_p": 0.01,
        "logprobs": 0,
    },
    "another budget": {"temperature": 0, "fork_ratio": 1.3},
    "recomputed": {"temperature": 0, "fork_selection": "dynamic"},
}


def params(**settings: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": TOKENS, "ignore_eos": True, **settings})  # type: ignore[arg-type]


def plain(model: Thoughtbubbles, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer, EngineConfig(page_size=4, cache_bytes=1 << 21))


def run(engine: Engine, requests: list[tuple[str, list[int], SamplingParams]], seed: int = 0) -> dict[str, Completion]:
    """Requests that come one after the other while others run."""
    dice, told, waiting = random.Random(seed), dict[str, list[TokenEvent]](), list(requests)
    while waiting or engine.has_work:
        if waiting and (not engine.has_work or dice.random() < 0.5):
            engine.add(*waiting.pop(0))
        for event in engine.step():
            told.setdefault(event.request_id, []).append(event)
        engine.cache.check_integrity()
    return {name: Completion.of(events) for name, events in told.items()}


def counts(completion: Completion) -> tuple[int, int, float]:
    """The stream tokens of the usage, which count computed tokens only."""
    usage = completion.events[-1].usage
    assert usage
    return usage.computed_tokens, usage.fork_count, usage.budget_used_ratio


def assert_alike(ahead: dict[str, Completion], waited: dict[str, Completion]) -> None:
    assert ahead.keys() == waited.keys()
    for name, one in ahead.items():
        other = waited[name]
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason), name
        assert [e.fork_count for e in one.events] == [e.fork_count for e in other.events], name
        assert counts(one) == counts(other), name
        for event, like in zip(one.events, other.events, strict=True):
            assert_ranked_alike(event.top_logprobs, like.top_logprobs)
            assert_reported_alike(event.prompt, like.prompt)
        assert [e.logprob for e in one.events] == pytest.approx([e.logprob for e in other.events], abs=1e-4), name


def assert_reported_alike(report: PromptReport | None, other: PromptReport | None) -> None:
    assert (report is None) == (other is None)
    if report and other:
        assert report.fork_counts == other.fork_counts
        assert report.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)
        for top, like in zip(report.top_logprobs, other.top_logprobs, strict=True):
            assert_ranked_alike(top or (), like or ())


def assert_ranked_alike(top: TopLogprobs, other: TopLogprobs) -> None:
    """Neighbours may change places where rounding decides which is likelier, and the last with one beyond it."""
    values = [p for _, p in other]
    assert [p for _, p in top] == pytest.approx(values, abs=1e-4)
    for rank, ((one, _), (like, p)) in enumerate(zip(top, other, strict=True)):
        beside = values[max(0, rank - 1) : rank] + values[rank + 1 : rank + 2]
        if rank + 1 < len(top) and all(abs(p - each) > 2e-4 for each in beside):
            assert one == like


@pytest.mark.sample(2)  # the next test has all kinds, side by side
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_request(
    kind: str, small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    requests = [(str(i), prompt, params(**KINDS[kind])) for i, prompt in enumerate(PROMPTS[:3])]
    waited = run(plain(small_model, tokenizer), requests)
    ahead = run(make_engine(small_model), requests)
    assert_alike(ahead, waited)


def test_kinds_beside_each_other(small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    requests = [
        (kind, prompt, params(**settings))
        for (kind, settings), prompt in zip(KINDS.items(), [*PROMPTS, *PROMPTS], strict=False)
    ]
    engines = plain(small_model, tokenizer), make_engine(small_model)
    waited, ahead = run(engines[0], requests), run(engines[1], requests)
    assert_alike(ahead, waited)
    assert engines[1].stats().generation_tokens_total == engines[0].stats().generation_tokens_total


def test_prompts_taken_in_and_first_tokens_drawn_by_kernels(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    kinds = ("greedy", "fork counts", "restricted", "scored")
    requests = [(kind, prompt, params(**KINDS[kind])) for kind, prompt in zip(kinds, PROMPTS, strict=False)]
    requests += [("another", [3] * 9, params(**KINDS["drawn"]))]
    waited = run(plain(small_model, tokenizer), requests)
    assert_alike(run(on_kernels(make_engine(small_model), [4, 12]), requests), waited)


def test_those_who_run_go_on_while_a_prompt_is_taken_in(small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    engine = make_engine(small_model)
    engine.add("runs", PROMPTS[0], params(temperature=0))
    while cuda_executor(engine).ahead is None:
        engine.step()
    before = cuda_executor(engine).ahead
    engine.add("comes", PROMPTS[1], params(temperature=0))
    events = engine.step()
    assert [event.request_id for event in events] == ["runs", "comes"]
    assert engine.last_step
    assert engine.last_step.phase == "prefill"
    after = cuda_executor(engine).ahead
    assert after
    assert after is not before
    assert [request.id for request in after.requests] == ["runs"]


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("greedy", ["prefill", "prefill", "prefill", "decode"]),
        ("restricted", ["prefill", "prefill", "prefill", "decode"]),
        ("recomputed", ["prefill", "decode", "prefill", "decode"]),
    ],
)
def test_they_take_turns_only_where_the_device_does_not_serve_both(
    kind: str, steps: list[str], small_model: Thoughtbubbles, make_engine: MakeEngine
) -> None:
    """A prompt of three shares comes while another request runs."""
    engine = make_engine(small_model, max_prefill_tokens=4)
    engine.add("runs", [1, 2], params(**{**KINDS[kind], "max_tokens": TOKENS + 4}))
    for _ in range(3):
        engine.step()
    engine.add("comes", [3] * 12, params(temperature=0))
    phases = []
    for _ in steps:
        told = engine.step()
        assert engine.last_step
        phases.append(engine.last_step.phase)
        served = "runs" in [event.request_id for event in told]
        assert served == (kind != "recomputed" or phases[-1] == "decode")
    assert phases == steps


def test_who_is_next_gets_a_place_while_the_device_computes(
    small_model: Thoughtbubbles, make_engine: MakeEngine
) -> None:
    engine = make_engine(small_model, max_prefill_tokens=8)
    for name in "abc":
        engine.add(name, [ord(name)] * 8, params(temperature=0))
    engine.step()
    assert [request.id for request in engine.scheduler.prefilling] == ["b"]


def test_those_who_have_asked_for_all_are_told_beside_a_prompt(
    small_model: Thoughtbubbles, make_engine: MakeEngine
) -> None:
    engine = make_engine(small_model)
    engine.add("ends", PROMPTS[0], params(temperature=0, max_tokens=2))
    while cuda_executor(engine).ahead is None:
        engine.step()
    engine.add("comes", PROMPTS[1], params(temperature=0))
    events = engine.step()
    assert [(event.request_id, event.finish_reason) for event in events] == [("ends", "length"), ("comes", None)]
    assert cuda_executor(engine).ahead is None


def test_forks_are_counted_the_same(small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    """Told of its streams a request has every token computed, so that both engines compute the same ones."""
    requests = [(str(i), prompt, params(return_fork_counts=True, seed=1)) for i, prompt in enumerate(PROMPTS[:3])]
    engines = plain(small_model, tokenizer), make_engine(small_model, max_batch_size=4)
    waited, ahead = (run(engine, requests) for engine in engines)
    assert_alike(ahead, waited)
    told = [(stats.forks_total, stats.fork_deletions_total) for stats in (engine.stats() for engine in engines)]
    assert told[0] == told[1]
    assert sum(told[0][0].values()) > 10


@pytest.mark.parametrize("kind", ["restricted", "scored", "recomputed"])
def test_no_request_keeps_its_neighbour_from_decoding_ahead(
    kind: str, small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    requests = [
        ("neighbour", PROMPTS[0], params(temperature=0, max_tokens=TOKENS + 4)),
        ("other", PROMPTS[1], params(**{**KINDS[kind], "max_tokens": TOKENS + 4})),
    ]
    waited = run(plain(small_model, tokenizer), requests)
    engine = make_engine(small_model)
    for request in requests:
        engine.add(*request)
    events = [*engine.step(), *engine.step()]
    for _ in range(3):
        own = engine.step()
        got = [event.request_id for event in own]
        assert got == ["neighbour", "other"] or (kind == "recomputed" and got == ["neighbour"]), "the other takes turns"
        events += own
        flight = cuda_executor(engine).ahead
        assert flight
        assert [request.id for request in flight.requests] == ["neighbour", "other"][: 1 if kind == "recomputed" else 2]
    while engine.has_work:
        events += engine.step()
    ahead: dict[str, list[TokenEvent]] = {}
    for event in events:
        ahead.setdefault(event.request_id, []).append(event)
    assert_alike({name: Completion.of(each) for name, each in ahead.items()}, waited)


def test_stops_that_the_device_does_not_know_of(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    free = run(plain(small_model, tokenizer), [("a", PROMPTS[0], params(temperature=0))])["a"]
    stops = params(temperature=0, stop_token_ids=(free.token_ids[2],))
    requests = [("a", PROMPTS[0], stops), ("b", PROMPTS[1], params(temperature=0)), ("c", PROMPTS[2], stops)]
    waited = run(plain(small_model, tokenizer), requests)
    engine = make_engine(small_model)
    assert_alike(run(engine, requests), waited)
    assert waited["a"].finish_reason == "stop"
    assert engine.cache.use().bytes == 0


def test_preemption_in_flight(small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    requests = [(str(i), [i + 1] * 12, params(temperature=0.9, seed=i, max_tokens=8)) for i in range(2)]
    waited = run(plain(small_model, tokenizer), requests)
    engine = make_engine(small_model, cache_bytes=21_500, max_model_len=20, prefix_caching=False)
    ahead: dict[str, list[TokenEvent]] = {}
    for request in requests:
        engine.add(*request)
    while engine.has_work:
        for event in engine.step():
            ahead.setdefault(event.request_id, []).append(event)
        engine.cache.check_integrity()
    assert engine.stats().preemptions_total > 0
    assert_alike({name: Completion.of(events) for name, events in ahead.items()}, waited)


@pytest.mark.parametrize(
    ("room", "uploads"),
    [(33, [0, 5, -32]), (17, [0, 5, -21, -36]), (9, [0, 5, -13, -20, -27, -34]), (2, [*range(40)]), (None, [0, 5])],
)
def test_pages_are_taken_for_all_who_soon_need_some(
    room: int | None, uploads: list[int], small_model: Thoughtbubbles, make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Together, since every allocation is written to the device: requests that arrive later share it.

    In advance for as many tokens as there is `room`; None: for all that these ask for, as where pages are plenty.
    Uploads are named by the launches before them; those below 0 were made while the last of these was computed.
    """
    from thoughtbubbles.engine.cuda.decode import DecodeStep
    from thoughtbubbles.engine.cuda.staging import Staging

    engine, written, runs = make_engine(small_model), list[int](), list[DecodeStep]()
    device = cuda_executor(engine).decode
    for name in "ab":
        engine.add(name, PROMPTS[0], params(max_tokens=50))
        plan = engine.scheduler.schedule()
        for flight in engine.executor.launch(Plan(plan.requests[:1], plan.num_tokens[:1], 1)):
            engine._report(engine.executor.land(flight))
    first, second = engine.scheduler.running
    first.num_scheduled = 1
    monkeypatch.setattr(
        engine.cache, "make_room",
        lambda needs: needs in [[engine.cache.most_needed(len(device._batch), n)] for n in range((room or 0) + 1)],
    )  # fmt: skip
    monkeypatch.setattr(engine.cache, "has_free", lambda _: room is None)
    monkeypatch.setattr(DecodeStep, "run", lambda step, **_: runs.append(step))
    monkeypatch.setattr(
        Staging, "write", lambda *_: written.append(len(runs) * (1 if len(runs) == device._launches else -1))
    )
    for step in range(40):
        requests = [first] if step < 5 else [first, second]
        for request in requests:
            request.num_scheduled += 1
        device.launch(requests)
    assert written == uploads


def test_an_abort_in_flight_frees_pages_at_once(small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    engine = make_engine(small_model, prefix_caching=False)
    engine.add("gone", PROMPTS[0], params(temperature=0))
    engine.add("stays", PROMPTS[1], params(temperature=0))
    for _ in range(3):
        engine.step()
    assert engine.abort("gone")
    engine.cache.check_integrity()
    events = [event for _ in range(TOKENS) for event in engine.step()]
    assert {event.request_id for event in events} == {"stays"}
    assert not engine.has_work
    assert engine.cache.use().bytes == 0


def test_a_prefix_left_by_a_device_is_shared(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    """The second prompt is the first with its answer: what the device has decoded of it is not computed again."""
    prompt = list(range(20))
    engine = make_engine(small_model)
    first = run(engine, [("a", prompt, params(temperature=0, max_tokens=4))])["a"]
    longer = [*prompt, *first.token_ids, 7]
    again = run(engine, [("b", longer, params(temperature=0, max_tokens=4))])["b"]
    waited = run(plain(small_model, tokenizer), [("b", longer, params(temperature=0, max_tokens=4))])["b"]
    assert again.token_ids == waited.token_ids
    usage = again.events[-1].usage
    assert usage
    assert usage.cached_tokens >= len(prompt) + 4 - 2


@pytest.mark.parametrize("kind", ["fork counts", "restricted"])
def test_no_tensor_is_made_elsewhere(kind: str, small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    """As in tests/engine/test_device.py: what does not name its device is made on `meta`, in prefill and in decode."""
    engine = on_kernels(make_engine(small_model), [16])
    with torch.device("meta"):
        completions = engine.generate(PROMPTS[:3], params(**KINDS[kind], prompt_logprobs=1))
    assert all(len(c.token_ids) == TOKENS for c in completions)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["greedy", "drawn", "fork counts", "restricted", "scored"])
def test_keys_and_values_that_are_nan_end_one_request(
    kind: str, small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    """The device has drawn a step ahead by then; the pages go to others, who read of them only what they wrote."""
    requests = [(str(i), prompt, params(**KINDS[kind])) for i, prompt in enumerate(PROMPTS[:2])]
    waited = run(plain(small_model, tokenizer), requests)
    engine = make_engine(small_model)
    for name, prompt, settings in [("broken", [9] * 6, params(**{**KINDS[kind], "max_tokens": TOKENS + 8})), *requests]:
        engine.add(name, prompt, settings)
    told: dict[str, list[TokenEvent]] = {}
    events = [event for _ in range(3) for event in engine.step()]
    [broken] = [request for request in engine.scheduler.running if request.id == "broken"]
    assert broken.state
    for segment in engine.cache.segments:
        for page in broken.state.pages(segment.segment.index):
            segment._stored[..., page * engine.cache.page_size : (page + 1) * engine.cache.page_size, :] = torch.nan
    while engine.has_work:
        events += engine.step()
        engine.cache.check_integrity()
    for event in events:
        told.setdefault(event.request_id, []).append(event)
    *tokens, last = told.pop("broken")
    assert (last.token_id, last.finish_reason) == (None, "error")
    waits = [each.fork_count is None for each in tokens]
    assert waits == [kind != "fork counts"] * (len(tokens) - 1) + [True], "the last one comes without what is NaN"
    assert engine.stats().non_finite_logits_total == 1
    assert_alike({name: Completion.of(events) for name, events in told.items()}, waited)
    assert_alike(run(engine, requests), waited)
