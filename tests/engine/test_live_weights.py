"""Weights that are replaced while an engine serves: each request is computed with those it started with, to its end."""

import random
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import MakeModel, lively_model
from thoughtbubbles.engine import Engine, EngineConfig, Group, SamplingParams
from thoughtbubbles.engine.native.library import Library
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


def test_what_has_not_started_waits_until_the_engine_resumes(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    """The choices of a group that has started go on, also those that wait."""
    engine = make(model, tokenizer, max_batch_size=2)
    first, second = Group(), Group()
    for i in range(5):
        engine.add(f"first/{i}", [1, 2, 3], params(max_tokens=2 + i), group=first)
    for i in range(3):
        engine.add(f"second/{i}", [1, 2, 3], params(), group=second)
    engine.step()
    engine.hold()
    finished: list[str] = []
    while not engine.drained:
        finished += [event.request_id for event in engine.step() if event.finish_reason]
    assert sorted(finished) == [f"first/{i}" for i in range(5)]
    assert engine.stats().num_requests_waiting == 3
    engine.resume()
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
    given, counted = weights_of(other_model()), iter(range(1000))

    def fail(*_: object) -> None:
        raise MemoryError("no memory is left")

    def fail_late(tensor: Tensor, *_: object) -> Tensor:
        if next(counted) == 9:
            raise MemoryError("no memory is left")
        return tensor.detach().add(0)

    with monkeypatch.context() as failing:
        if part == "packed model":
            failing.setattr(PackedModel, "__init__", fail)
        elif part == "native library":
            failing.setattr(Library, "create", fail)
        else:
            failing.setattr(Tensor, "clone", fail_late)
        with pytest.raises(MemoryError, match="no memory is left"):
            engine.replace_weights(given)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in engine.model.state_dict().items())
    assert [each.token_ids for each in engine.generate(prompts, params())] == wanted
    engine.replace_weights(given)
    assert [each.token_ids for each in engine.generate(prompts, params())] != wanted


@dataclass
class Wanted:
    """What a client sent, and what came of it."""

    prompts: list[list[int]]
    params: SamplingParams
    tokens: dict[str, list[int]] = field(default_factory=dict)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.sample(4)
def test_random_load_with_loads_in_its_middle(
    seed: int, make_model: MakeModel, tokenizer: Tokenizer, settings: dict[str, object]
) -> None:
    """Every group's tokens are those of one of the two models, with prefixes shared, requests preempted and aborted."""
    dice = random.Random(seed)
    models = [make_model(), other_model()]
    engine = make(models[0], tokenizer, cache_bytes=dice.choice([300_000, 1 << 20]), **settings)
    present, loads, ready = 0, 0, 0
    trunk = [dice.randrange(256) for _ in range(40)]
    groups: list[Wanted] = []
    started: dict[int, int] = {}  # the model that each group started with
    open_groups: list[Group] = []
    for step in range(10_000):
        if len(groups) == 24 and not engine.has_work:
            break
        if len(groups) < 24 and dice.random() < 0.3:
            prompts = [trunk[: dice.randint(1, 40)] + [dice.randrange(256)] for _ in range(dice.choice([1, 1, 3]))]
            groups.append(Wanted(prompts, dice.choice(KINDS)))
            open_groups.append(Group())
            for i, prompt in enumerate(prompts):
                engine.add(f"{len(groups) - 1}/{i}", prompt, groups[-1].params, group=open_groups[-1])
        if dice.random() < 0.02 and engine.has_work:
            engine.abort(f"{dice.randrange(len(groups))}/0")
        if step == ready:  # a checkpoint has been read
            engine.hold()
        if engine.scheduler.holding and engine.drained:
            present = 1 - present
            engine.replace_weights(weights_of(models[present]))
            engine.resume()
            loads += 1
            ready = step + dice.randint(1, 30)
        if engine.has_work:
            for event in engine.step():
                group, index = event.request_id.split("/")
                started.setdefault(int(group), present)
                if event.token_id is not None:
                    groups[int(group)].tokens.setdefault(index, []).append(event.token_id)
        engine.cache.check_integrity()
    assert loads > 2
    assert set(started.values()) == {0, 1}
    alone = [make(model, tokenizer, prefix_caching=False, **settings) for model in models]
    for number, model in started.items():
        wanted = [each.token_ids for each in alone[model].generate(groups[number].prompts, groups[number].params)]
        for index, tokens in groups[number].tokens.items():
            assert list(wanted[int(index)][: len(tokens)]) == tokens
    assert len(started) > 12
