"""Weights that are replaced while an engine serves: each request is computed with those it started with, to its end."""

import random
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import MakeModel, lively_model
from thoughtbubbles.engine import Engine, EngineConfig, Group, SamplingParams, TokenEvent, transfer
from thoughtbubbles.engine.native.library import Library, Model
from thoughtbubbles.engine.native.loading import NativeUnavailableError, load_native
from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

EXECUTORS = {
    "portable": {"executor": "portable"},
    "native": {"executor": "native"},
    "int8": {"executor": "native", "weights": "int8"},
    "speculating": {"speculate": 4},
    "half cache": {"cache_dtype": "float16"},
}


@pytest.fixture(params=EXECUTORS)
def settings(request: pytest.FixtureRequest) -> dict[str, object]:
    found: dict[str, object] = EXECUTORS[request.param]
    if found.get("executor") == "native":
        try:
            load_native()
        except NativeUnavailableError as error:
            pytest.skip(f"no native library: {error}")
    return found


def make(model: Thoughtbubbles, tokenizer: Tokenizer, **settings: object) -> Engine:
    """An engine over a copy of the model: an engine replaces the weights of its own."""
    config = {"max_batch_size": 4, "page_size": 4, "cache_bytes": 1 << 20, **settings}
    return Engine(deepcopy(model), tokenizer, EngineConfig(**config))  # type: ignore[arg-type]


def other_model() -> Thoughtbubbles:
    """A model of the same shape with other weights."""
    model = lively_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def weights_of(model: Thoughtbubbles) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def params(**settings: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, "temperature": 0, "ignore_eos": True, **settings})  # type: ignore[arg-type]


KINDS = (
    params(), params(temperature=1.2, seed=7), params(fork_ratio=1.3), params(fork_selection="dynamic"),
    params(return_fork_counts=True), params(temperature=0.9, seed=2, top_p=0.8, max_tokens=14),
)  # fmt: skip


def test_tokens_are_those_of_an_engine_made_with_the_new_weights(
    model: Thoughtbubbles, tokenizer: Tokenizer, settings: dict[str, object], prompts: list[list[int]]
) -> None:
    new = other_model()
    engine, wanted, before = (make(each, tokenizer, **settings) for each in (model, new, model))
    for kind in KINDS:
        engine.generate(prompts, kind)
    engine.replace_weights(weights_of(new))
    for kind in KINDS:
        found = [each.token_ids for each in engine.generate(prompts, kind)]
        assert found == [each.token_ids for each in wanted.generate(prompts, kind)]
        assert found != [each.token_ids for each in before.generate(prompts, kind)]
    engine.cache.check_integrity()


def test_the_tensors_get_the_weights_from_before(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    given = weights_of(other_model())
    engine = make(model, tokenizer)
    addresses = [parameter.data_ptr() for parameter in engine.model.parameters()]
    engine.replace_weights(given)
    assert all(torch.equal(given[name], tensor) for name, tensor in model.state_dict().items())
    assert [parameter.data_ptr() for parameter in engine.model.parameters()] == addresses


def test_cached_prefixes_are_forgotten(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine, prompt = make(model, tokenizer), list(range(40))
    for cached in (0, 39):
        [completion] = engine.generate([prompt], params())
        assert completion.events[-1].usage
        assert completion.events[-1].usage.cached_tokens == cached
    engine.replace_weights(weights_of(model))
    [completion] = engine.generate([prompt], params())
    assert completion.events[-1].usage
    assert completion.events[-1].usage.cached_tokens == 0


def test_packed_weights_from_before_are_freed(
    model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles: set[int] = set()
    create, destroy = Library.create, Library.destroy

    def created(library: Library, described: Model, level: str) -> int:
        handles.add(handle := create(library, described, level))
        return handle

    def destroyed(library: Library, handle: int) -> None:
        destroy(library, handle)
        handles.discard(handle)

    monkeypatch.setattr(Library, "create", created)
    monkeypatch.setattr(Library, "destroy", destroyed)
    engine = make(model, tokenizer)
    if not engine.executor.name.startswith("native"):
        pytest.skip("no native library")
    for _ in range(2):
        engine.replace_weights(weights_of(model))
        assert len(handles) == 1


def test_what_has_not_started_waits_until_the_engine_resumes(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    """The choices of a group that has started go on, also those that wait."""
    engine = make(model, tokenizer, max_batch_size=2)
    first, second = Group(), Group()
    for i in range(5):
        engine.add(f"first/{i}", [1, 2, 3], params(max_tokens=2 + i), group=first)
    for i in range(3):
        engine.add(f"second/{i}", [1, 2, 3], params(), group=second)
    engine.step()
    engine.pause_admission()
    finished: list[str] = []
    while not engine.drained:
        finished += [event.request_id for event in engine.step() if event.finish_reason]
    assert sorted(finished) == [f"first/{i}" for i in range(5)]
    assert engine.stats().num_requests_waiting == 3
    engine.resume_admission()
    assert not second.started
    engine.step()
    assert second.started


@pytest.mark.parametrize("part", ["packed model", "native library", "copy"])
def test_a_failure_leaves_the_old_weights(
    part: str, model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(model, tokenizer, executor="portable" if part == "packed model" else "auto")
    if part == "native library" and not engine.executor.name.startswith("native"):
        pytest.skip("no native library")
    wanted = [each.token_ids for each in engine.generate(prompts, params())]
    given, counted, swap = weights_of(other_model()), iter(range(1000)), transfer._swap

    def fail(*_: object) -> None:
        raise MemoryError("no memory is left")

    def fail_late(*tensors: Tensor) -> None:
        if next(counted) == 9:
            raise MemoryError("no memory is left")
        swap(*tensors)

    with monkeypatch.context() as failing:
        if part == "packed model":
            failing.setattr(PackedModel, "__init__", fail)
        elif part == "native library":
            failing.setattr(Library, "create", fail)
        else:
            failing.setattr(transfer, "_swap", fail_late)
        with pytest.raises(MemoryError, match="no memory is left"):
            engine.replace_weights(given)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in engine.model.state_dict().items())
    assert [each.token_ids for each in engine.generate(prompts, params())] == wanted
    engine.replace_weights(given)
    assert [each.token_ids for each in engine.generate(prompts, params())] != wanted


@dataclass
class Sent:
    """What a client sent, and what came of it."""

    prompts: list[list[int]]
    params: SamplingParams
    group: Group = field(default_factory=Group)
    model: int | None = None
    """The model that computed its first token."""
    tokens: dict[int, list[int]] = field(default_factory=dict)


class Load:
    """Random requests for an engine whose weights are those of two models by turns."""

    def __init__(self, seed: int, engine: Engine, models: list[Thoughtbubbles]) -> None:
        self.dice = random.Random(seed)
        self.engine = engine
        self.models = models
        self.present = self.loads = 0
        self.sent: list[Sent] = []
        self._trunk = [self.dice.randrange(256) for _ in range(40)]
        self._left = 0  # steps until the next checkpoint has been read

    def run(self, clients: int) -> None:
        while len(self.sent) < clients or self.engine.has_work:
            if len(self.sent) < clients and self.dice.random() < 0.3:
                self._send()
            if self.sent and self.dice.random() < 0.02:
                self.engine.abort(f"{self.dice.randrange(len(self.sent))}/0")
            self._load()
            for event in self.engine.step() if self.engine.has_work else []:
                self._take(event)
            self.engine.cache.check_integrity()

    def _send(self) -> None:
        lengths = [self.dice.randint(1, 40) for _ in range(self.dice.choice([1, 1, 3]))]
        prompts = [[*self._trunk[:length], self.dice.randrange(256)] for length in lengths]
        sent = Sent(prompts, self.dice.choice(KINDS))
        for i, prompt in enumerate(prompts):
            self.engine.add(f"{len(self.sent)}/{i}", prompt, sent.params, group=sent.group)
        self.sent.append(sent)

    def _load(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self.engine.pause_admission()
        if self._left <= 0 and self.engine.drained:
            self.present = 1 - self.present
            self.engine.replace_weights(weights_of(self.models[self.present]))
            self.engine.resume_admission()
            self.loads += 1
            self._left = self.dice.randint(1, 30)

    def _take(self, event: TokenEvent) -> None:
        number, index = map(int, event.request_id.split("/"))
        sent = self.sent[number]
        sent.model = self.present if sent.model is None else sent.model
        if event.token_id is not None:
            sent.tokens.setdefault(index, []).append(event.token_id)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.sample(4)
def test_random_load_with_loads_in_its_middle(
    seed: int, make_model: MakeModel, tokenizer: Tokenizer, settings: dict[str, object]
) -> None:
    """The tokens of all choices are those of one of the two models, also if prefixes are shared or evicted."""
    models = [make_model(), other_model()]
    load = Load(seed, make(models[0], tokenizer, cache_bytes=300_000 if seed % 2 else 1 << 20, **settings), models)
    load.run(clients=24)
    assert load.loads > 2
    alone = [make(model, tokenizer, prefix_caching=False, **settings) for model in models]
    computed: Counter[int] = Counter()
    for sent in load.sent:
        if sent.model is not None:
            computed[sent.model] += 1
            wanted = alone[sent.model].generate(sent.prompts, sent.params)
            for index, tokens in sent.tokens.items():
                assert list(wanted[index].token_ids[: len(tokens)]) == tokens
    assert min(computed[0], computed[1]) > 2
