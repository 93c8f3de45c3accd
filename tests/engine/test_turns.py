"""A step of a request without pages is computed in pieces, between which cached requests take their steps."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from thoughtbubbles.engine import Completion, Engine, EngineConfig, SamplingParams, TokenEvent
from thoughtbubbles.engine.config import ExecutorKind
from thoughtbubbles.engine.prompt_report import Scores
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.revising import executor
from thoughtbubbles.engine.revising.executor import RevisingExecutor
from thoughtbubbles.engine.revising.forward import Revised
from thoughtbubbles.engine.revising.pieces import Pieces
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


def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the executor read a clock on which a second passes between two readings: a piece takes one, and so does
    all that others do in a step."""
    clock = itertools.count()
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))


def of_step(engine: Engine) -> Counter[str]:
    """Take a step, and count the tokens that each request gets."""
    return Counter(event.request_id for event in engine.step())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "prompt scored"])
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
    tick(monkeypatch)
    engine.add("other", [9, 8, 7], params(max_tokens=60, fork_selection="dynamic"))
    while "other" not in of_step(engine):
        pass
    got: Counter[str] = Counter()
    for _ in range(45):
        got += of_step(engine)
    assert [got[name] for name in NEIGHBOURS] == [45] * 3
    pieces = len(engine.model.blocks)
    assert 45 / 3 / pieces - 1 <= got["other"] <= 45 / 3 / pieces


def test_all_time_between_its_pieces_is_the_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a launch takes the host a moment, and the time goes into waiting, scheduling and reporting."""
    now, recompute = 0.0, engine.executor.recompute  # type: ignore[attr-defined]
    compute = recompute.step

    def slowly(requests: Sequence[Request]) -> Pieces[dict[Request, Revised]]:
        nonlocal now
        pieces = compute(requests)
        while True:
            now += 1
            try:
                yield next(pieces)
            except StopIteration as end:
                revised: dict[Request, Revised] = end.value
                return revised

    monkeypatch.setattr(recompute, "step", slowly)
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=lambda: now))
    engine.add("other", [9, 8, 7], params(max_tokens=60, fork_selection="dynamic"))
    got: Counter[str] = Counter()
    while not got["other"]:
        got += of_step(engine)
    got.clear()
    for _ in range(45):
        now += 1
        got += of_step(engine)
    assert [got[name] for name in NEIGHBOURS] == [45] * 3
    pieces = len(engine.model.blocks) + 1  # of a token, with the end of its step
    assert 45 / 3 / pieces - 1 <= got["other"] <= 45 / 3 / pieces + 1


def counted_pieces(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pieces that the scoring of prompts takes, as they are computed."""
    recompute = engine.executor.recompute  # type: ignore[attr-defined]
    score, pieces = recompute.score, list[int]()

    def counted(request: Request, top: int) -> Pieces[Scores]:
        scoring = score(request, top)
        while True:
            try:
                pieces.append(next(scoring))
            except StopIteration as end:
                scores: Scores = end.value
                return scores
            yield pieces[-1]

    monkeypatch.setattr(recompute, "score", counted)
    return pieces


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_scoring_token_by_token_takes_no_more_time_than_decoding(
    kind: ExecutorKind, model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece has few streams and costs as much as one of many: each takes a second by this clock, as a step does."""
    engine = make(model, tokenizer, kind)
    for i, name in enumerate(NEIGHBOURS):
        engine.add(name, [i + 1], params(max_tokens=60))
    engine.step()
    pieces = counted_pieces(engine, monkeypatch)
    tick(monkeypatch)
    engine.add("scored", LONG, params(max_tokens=0, fork_selection="dynamic", prompt_logprobs=1))
    got: Counter[str] = Counter()
    while got["one"] < 45:
        got += of_step(engine)
    assert [got[name] for name in NEIGHBOURS] == [45] * 3
    assert 3 <= len(pieces) <= 45 / 3 + 1, "a third of the time at most, and it goes on"


def test_scoring_token_by_token_lets_requests_come(
    model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, a step ends after a moment: by this clock, after each piece."""
    engine = make(model, tokenizer)
    pieces = counted_pieces(engine, monkeypatch)
    tick(monkeypatch)
    engine.add("scored", LONG, params(max_tokens=0, fork_selection="dynamic", prompt_logprobs=1))
    for _ in range(20):
        engine.step()
    assert 0 < len(pieces) <= 20
    engine.add("comes", [1], params(max_tokens=1))
    got: Counter[str] = Counter()
    for _ in range(4):
        got += of_step(engine)
    assert got == {"comes": 1}
    monkeypatch.undo()
    while not got["scored"]:
        got += of_step(engine)


def test_one_alone_has_a_token_every_step(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine = make(model, tokenizer)
    engine.add("only", LONG[:4], params(fork_selection="dynamic"))
    while not of_step(engine):
        pass
    assert [of_step(engine)["only"] for _ in range(19)] == [1] * 19


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompt_waits_for_the_pieces_of_another(kind: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with pages is prefilled beside two without, one of which waits for the other."""
    tick(monkeypatch)
    monkeypatch.setattr(RevisingExecutor, "max_prefill_tokens", 1)  # a piece a step
    engine.add("long", LONG, params(max_tokens=1, **KINDS[kind]))
    engine.add("another", LONG, params(max_tokens=1, **KINDS[kind]))
    assert "long" not in of_step(engine)
    engine.add("comes", LONG, params(max_tokens=1))
    got: Counter[str] = Counter()
    for _ in range(40 // 8):
        got += of_step(engine)
    assert (got["comes"], got["another"]) == (1, 0)
    assert [got[name] for name in NEIGHBOURS] == [5] * 3


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
    tick(monkeypatch)
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
