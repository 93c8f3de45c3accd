"""A step of a request without pages is computed in pieces, between which cached requests take their steps."""

import itertools
from collections import Counter, defaultdict

import pytest

from thoughtbubbles.engine import Completion, Engine, EngineConfig, SamplingParams, TokenEvent
from thoughtbubbles.engine.config import ExecutorKind
from thoughtbubbles.engine.revising import executor
from thoughtbubbles.model import ForkBias, Thoughtbubbles, Tokenizer

LONG = [(7 * i * i + 3) % 251 for i in range(40)]
KINDS: dict[str, dict[str, object]] = {
    "dynamic": {"fork_selection": "dynamic"},
    "fixed": {"fork_selection": "fixed"},
    "biased": {"fork_bias": (ForkBias(layer=1, position=3, bias=2.0),)},
    "scored": {"return_fork_scores": True},
    "prompt scored": {"fork_selection": "dynamic", "prompt_logprobs": 1},
}
NEIGHBOURS = ["one", "two", "three"]


def params(**settings: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 20, "ignore_eos": True, "temperature": 0, **settings})  # type: ignore[arg-type]


def make(model: Thoughtbubbles, tokenizer: Tokenizer, kind: ExecutorKind = "auto") -> Engine:
    config = EngineConfig(max_batch_size=8, page_size=4, cache_bytes=1 << 22, max_prefill_tokens=8, executor=kind)
    return Engine(model, tokenizer, config)


@pytest.fixture
def engine(model: Thoughtbubbles, tokenizer: Tokenizer) -> Engine:
    """Three cached requests decode in it."""
    engine = make(model, tokenizer)
    for i, name in enumerate(NEIGHBOURS):
        engine.add(name, [i + 1], params(max_tokens=60))
    engine.step()
    return engine


def of_step(engine: Engine) -> Counter[str]:
    """Take a step, and count the tokens that each request gets."""
    return Counter(event.request_id for event in engine.step())


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_lets_others_step_between_its_pieces(kind: str, engine: Engine) -> None:
    engine.add("long", LONG, params(max_tokens=1, **KINDS[kind]))
    steps = 0
    while "long" not in (got := of_step(engine)):
        assert [got[name] for name in NEIGHBOURS] == [1] * 3
        steps += 1
    assert steps >= 40 / 8 - 1, "no more of it a step than of other prompts"


@pytest.mark.parametrize("executor_kind", ["native", "portable"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_same(
    kind: str, executor_kind: ExecutorKind, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    requests = {"long": (LONG, KINDS[kind]), "short": (LONG[:3], KINDS[kind]), "cached": (LONG[5:12], {})}
    alone = {
        name: make(model, tokenizer, executor_kind).generate([prompt], params(**own))[0]
        for name, (prompt, own) in requests.items()
    }
    engine = make(model, tokenizer, executor_kind)
    events = defaultdict[str, list[TokenEvent]](list)
    for name, (prompt, own) in requests.items():
        engine.add(name, prompt, params(**own))
        for event in engine.step():
            events[event.request_id].append(event)
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
    for name, expected in alone.items():
        found = Completion.of(events[name])
        assert found.token_ids == expected.token_ids
        assert [each.fork_scores and len(each.fork_scores) for each in found.events] == [
            each.fork_scores and len(each.fork_scores) for each in expected.events
        ]
        assert found.events[0].prompt == expected.events[0].prompt


def test_one_that_decodes_takes_the_time_of_its_number(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece, and each step of the three others, takes a second by this clock."""
    clock = itertools.count()
    monkeypatch.setattr(executor.time, "monotonic", lambda: float(next(clock)))
    engine.add("other", [9, 8, 7], params(max_tokens=60, fork_selection="dynamic"))
    while "other" not in of_step(engine):
        pass
    got: Counter[str] = Counter()
    for _ in range(45):
        got += of_step(engine)
    assert [got[name] for name in NEIGHBOURS] == [45] * 3
    pieces = len(engine.model.blocks)
    assert 45 / 3 / pieces - 1 <= got["other"] <= 45 / 3 / pieces


def test_one_alone_has_a_token_every_step(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine = make(model, tokenizer)
    engine.add("only", LONG[:4], params(fork_selection="dynamic"))
    while not of_step(engine):
        pass
    assert [of_step(engine)["only"] for _ in range(19)] == [1] * 19


def test_nothing_is_kept_of_one_that_is_aborted_between_pieces(engine: Engine) -> None:
    for name in ("goes", "stays"):
        engine.add(name, LONG, params(max_tokens=2, fork_selection="dynamic"))
    recompute = engine.executor.recompute  # type: ignore[attr-defined]
    assert "goes" not in of_step(engine)
    assert recompute.kept_bytes > 0
    engine.abort("goes")
    assert recompute.kept_bytes == 0
    got: Counter[str] = Counter()
    while got["stays"] < 2:
        got += of_step(engine)
    assert "goes" not in got


def test_one_of_a_step_is_aborted_and_the_other_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(executor.time, "monotonic", lambda: float(next(clock)))
    for name in ("goes", "stays"):
        engine.add(name, LONG[:3], params(fork_selection="dynamic"))
    got: Counter[str] = Counter()
    while not (got["goes"] and got["stays"]):
        got += of_step(engine)
    while of_step(engine)["stays"]:
        pass
    engine.abort("goes")  # between two pieces of their step
    before = got["stays"]
    for _ in range(40):
        got += of_step(engine)
    assert got["stays"] > before
    assert got["goes"] == 1 or got["goes"] == before
