"""Logits that are NaN or infinite end their request with an error, and leave no trace for others."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.engine.embedded import embed
from thoughtbubbles.engine import Completion, Engine, EngineConfig, SamplingParams, TokenEvent
from thoughtbubbles.engine.config import ExecutorKind
from thoughtbubbles.engine.revising.forward import Revised
from thoughtbubbles.engine.revising.pieces import Pieces
from thoughtbubbles.engine.revising.state import RevisableState
from thoughtbubbles.engine.sampling import finite_rows
from thoughtbubbles.model import ForkBias, Thoughtbubbles, Tokenizer

BROKEN = 200
"""The token whose embedding is broken."""
INNOCENT = [[8] * 20, [40, 41, 42] * 9, [3, 4] * 14, [9] * 22, [11] * 12, [13] * 10]
"""Prompts of several lengths: the shorter ones' keys are padded where they attend together."""


@pytest.fixture(params=["native", "portable"])
def executor(request: pytest.FixtureRequest) -> ExecutorKind:
    kind: ExecutorKind = request.param
    return kind


@pytest.fixture
def engine(model: Thoughtbubbles, tokenizer: Tokenizer, executor: ExecutorKind) -> Engine:
    return Engine(
        model, tokenizer, EngineConfig(page_size=4, cache_bytes=1 << 22, max_prefill_tokens=16, executor=executor)
    )


def break_token(engine: Engine, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    embed(monkeypatch, engine.model, BROKEN, value)


def params(**settings: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 12, "ignore_eos": True, "seed": 3, **settings})  # type: ignore[arg-type]


def run(engine: Engine) -> dict[str, Completion]:
    told: dict[str, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step():
            told.setdefault(event.request_id, []).append(event)
        engine.cache.check_integrity()
    return {name: Completion.of(events) for name, events in told.items()}


def told(completions: dict[str, Completion]) -> dict[str, tuple[object, ...]]:
    return {name: (each.token_ids, each.text, each.finish_reason) for name, each in completions.items()}


def innocent(engine: Engine) -> None:
    for i, prompt in enumerate(INNOCENT):
        engine.add(f"innocent {i}", prompt, params(temperature=0.9))


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ([7, 6, BROKEN], {}),
        ([BROKEN, *range(40)], {}),
        ([*range(20), BROKEN, *range(20)], {}),
        ([7, 6], {"logit_bias": {BROKEN: 100}}),
        ([7, 6], {"logit_bias": {BROKEN: 100}, "return_fork_counts": True}),
        ([7, 6], {"logit_bias": {BROKEN: 100}, "logprobs": 2, "temperature": 0}),
        ([7, BROKEN, 6], {"prompt_logprobs": 1, "max_tokens": 0}),
    ],
    ids=[
        "last",
        "first",
        "in the middle",
        "drawn",
        "fork counts",
        "scored",
        "only scored",
    ],
)
def test_one_request_ends_and_its_neighbours_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, prompt: list[int], settings: dict[str, object]
) -> None:
    innocent(engine)
    alone = told(run(engine))
    engine.cache.clear()
    break_token(engine, monkeypatch, math.nan)
    engine.add("broken", prompt, params(**settings))
    innocent(engine)
    together = run(engine)
    broken = together.pop("broken")
    assert (broken.finish_reason, broken.events[-1].token_id) == ("error", None)
    assert all(event.logprob is None or math.isfinite(event.logprob) for event in broken.events)
    assert told(together) == alone
    assert engine.stats().non_finite_logits_total == 1
    innocent(engine)
    assert told(run(engine)) == alone, "something was left in the cache, or where keys and values are gathered"


@pytest.mark.parametrize("length", [22, 28, 34])
def test_requests_that_are_gathered_in_the_same_step(
    model: Thoughtbubbles, tokenizer: Tokenizer, executor: ExecutorKind, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Where the broken one's keys stand after one segment, others are padded in the next."""
    engine = Engine(
        model, tokenizer, EngineConfig(max_batch_size=8, page_size=4, cache_bytes=1 << 22, executor=executor)
    )
    innocent(engine)
    alone = told(run(engine))
    engine.cache.clear()
    break_token(engine, monkeypatch, math.nan)
    engine.add("broken", [7] * length, params(logit_bias={BROKEN: 100}))
    innocent(engine)
    together = run(engine)
    assert together.pop("broken").finish_reason == "error"
    assert told(together) == alone


def test_who_comes_after_one_that_was_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of later requests are gathered into the same buffer, whose padding has its values."""
    innocent(engine)
    alone = told(run(engine))
    engine.cache.clear()
    break_token(engine, monkeypatch, math.nan)
    for length in (20, 28, 40):
        engine.add("broken", [7] * length, params(logit_bias={BROKEN: 100}))
        assert run(engine)["broken"].finish_reason == "error"
        innocent(engine)
        assert told(run(engine)) == alone


@pytest.mark.parametrize("value", [math.inf, -math.inf, 3e38])
def test_what_is_not_finite_is_not_only_nan(engine: Engine, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    break_token(engine, monkeypatch, value)
    engine.add("last", [7, 6, BROKEN], params())
    engine.add("in the middle", [*range(20), BROKEN, *range(20)], params())
    assert [each.finish_reason for each in run(engine).values()] == ["error", "error"]


def test_nothing_of_it_is_found_by_the_next(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single fault, as of a processor, does not affect later requests with the same prefix."""
    prompt = [*range(20), BROKEN, *range(20)]
    with monkeypatch.context() as broken:
        break_token(engine, broken, math.nan)
        engine.add("broken", prompt, params())
        assert run(engine)["broken"].finish_reason == "error"
    assert engine.cache.use().bytes == 0
    engine.add("again", prompt, params())
    again = run(engine)["again"]
    assert (again.finish_reason, len(again.token_ids)) == ("length", 12)
    assert again.events[-1].usage
    assert again.events[-1].usage.cached_tokens == 0


@pytest.mark.parametrize("rule", ["dynamic", "fixed"])
def test_rules_that_recompute(model: Thoughtbubbles, tokenizer: Tokenizer, rule: str) -> None:
    engine = Engine(model, tokenizer, EngineConfig(page_size=4, cache_bytes=1 << 22))
    engine.add("innocent", [1, 2, 3], params(fork_selection=rule))
    alone = told(run(engine))
    forward = engine.executor.recompute._forward  # type: ignore[attr-defined]
    pieces = forward.pieces

    def broken(states: Sequence[RevisableState], tokens: Sequence[Sequence[int]]) -> Pieces[list[Revised]]:
        revised = yield from pieces(states, tokens)
        for each, ids in zip(revised, tokens, strict=True):
            if BROKEN in ids:
                each.logits.fill_(math.nan)
        return revised

    forward.pieces = broken  # type: ignore[method-assign, assignment]
    engine.add("broken", [7, BROKEN], params(fork_selection=rule))
    engine.add("innocent", [1, 2, 3], params(fork_selection=rule))
    together = run(engine)
    assert together.pop("broken").finish_reason == "error"
    assert told(together) == alone


@pytest.mark.parametrize(
    "settings",
    [
        {"return_fork_counts": True},
        {"return_fork_scores": True, "fork_bias": (ForkBias(layer=1, position=0, bias=2.0),)},
        {"return_fork_counts": True, "return_fork_scores": True, "fork_selection": "dynamic"},
        {"return_fork_counts": True, "max_tokens": 1},
        {},
    ],
    ids=["fork counts", "fork scores", "dynamic", "the last token", "neither"],
)
def test_the_token_before_is_delivered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    """Also one that waits for its streams, which are NaN as well: it comes without them."""
    engine.generate([[7]], params(fork_selection="dynamic"))  # reads the head, which is tied to the embedding
    break_token(engine, monkeypatch, math.nan)
    engine.add("broken", [7, 6], params(logit_bias={BROKEN: 100}, prompt_logprobs=0, **settings))
    broken = run(engine)["broken"]
    assert (broken.token_ids, broken.finish_reason) == ((BROKEN,), "error")
    assert broken.text == "\ufffd"
    first, *_, last = broken.events
    assert first.prompt is not None
    assert (first.fork_count, first.fork_scores, first.finish_reason) == (None, None, None)
    assert (last.token_id, last.finish_reason, last.usage) == (None, "error", None)


@pytest.mark.parametrize("counts", [False, True])
def test_the_text_before_is_delivered(engine: Engine, monkeypatch: pytest.MonkeyPatch, counts: bool) -> None:
    """Also what could have become a stop string."""
    letter = ord("A")
    embed(monkeypatch, engine.model, letter, math.nan)
    engine.add("broken", [7, 6], params(logit_bias={letter: 100}, stop=("AB",), return_fork_counts=counts))
    assert run(engine)["broken"].text == "A"


@pytest.mark.parametrize(
    "settings", [{"temperature": 1e-5}, {"repetition_penalty": 1e30}, {"repetition_penalty": 1e-30}]
)
def test_logits_so_large_that_sampling_would_overflow(
    model: Thoughtbubbles, tokenizer: Tokenizer, executor: ExecutorKind, settings: dict[str, object]
) -> None:
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(1e35)
    engine = Engine(model, tokenizer, EngineConfig(page_size=4, cache_bytes=1 << 22, executor=executor))
    engine.add("broken", [7, 6], params(**settings))
    assert run(engine)["broken"].finish_reason == "error"


@pytest.mark.parametrize(
    ("row", "finite"),
    [
        ([0.0, 1.0], True),
        ([-math.inf, 1.0], True),
        ([math.nan, 1.0], False),
        ([math.inf, 1.0], False),
        ([-math.inf, -math.inf], False),
        ([1e9, -3e38], True),
        ([1e30, 0.0], False),
    ],
)
def test_which_rows_a_token_can_be_drawn_from(row: list[float], finite: bool) -> None:
    logits: Tensor = torch.tensor([[0.0, 0.0], row])
    assert finite_rows(logits) == [True, finite]
    assert finite_rows(logits.bfloat16()) == [True, finite]
