"""Whole engines, native and portable, under the same random load: aborts, preemptions, prompts in chunks, prefixes."""

import random

import pytest

from tests.engine.conftest import MakeModel
from thoughtbubbles.engine import Engine, EngineConfig, ExecutorKind, SamplingParams
from thoughtbubbles.engine.native.library import Library
from thoughtbubbles.model import Selection, Thoughtbubbles, Tokenizer


def serve(
    model: Thoughtbubbles, tokenizer: Tokenizer, executor: ExecutorKind, seed: int, **settings: object
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Return the greedy tokens of all requests that are not aborted, and the number of preemptions."""
    dice, beginning = random.Random(seed), random.Random(seed + 1).choices(range(256), k=24)
    settings = {"max_batch_size": 6, "page_size": 4, "max_prefill_tokens": 16, "executor": executor, **settings}
    cache = Engine(model, tokenizer, EngineConfig(**settings)).cache  # type: ignore[arg-type]
    pages = cache.pages_needed(Selection.of(model.config, "causal"), 64)
    least = sum(n * segment.page_bytes for n, segment in zip(pages, cache.segments, strict=True))
    engine = Engine(model, tokenizer, EngineConfig(**settings, cache_bytes=int(1.4 * least)))  # type: ignore[arg-type]
    tokens: dict[str, list[int]] = {}
    for i in range(24):
        prompt = [*beginning[: dice.choice([0, 0, 18, 24])], *(dice.randrange(256) for _ in range(dice.randint(1, 16)))]
        ratio = dice.choice([None, 1.0, dice.uniform(1, model.config.ratio)])
        new = min(dice.randint(8, 24), model.config.block_size - len(prompt))
        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, fork_ratio=ratio)
        engine.add(str(i), prompt, params)
        tokens[str(i)] = []
    aborted = {str(i) for i in dice.sample(range(24), 5)}
    leaving = list(aborted)
    while engine.has_work:
        for event in engine.step():
            if event.token_id is not None:
                tokens[event.request_id].append(event.token_id)
        engine.cache.check_integrity()
        if leaving and dice.random() < 0.2:
            engine.abort(leaving.pop())
    assert engine.stats().cache_streams == 0
    kept = {name: tuple(ids) for name, ids in tokens.items() if name not in aborted}
    return kept, engine.stats().preemptions_total


@pytest.mark.numeric
@pytest.mark.sample(2)
@pytest.mark.parametrize("seed", range(8))
def test_both_give_the_same_greedy_tokens(
    seed: int, library: Library, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    model = make_model().bfloat16().float() if seed % 2 else make_model()
    given, preemptions = serve(model, tokenizer, "native", seed)
    assert given == serve(model, tokenizer, "portable", seed)[0]
    assert preemptions > 0


@pytest.mark.numeric
def test_running_requests_decode_in_the_steps_of_a_long_prompt(
    library: Library, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    """Their tokens are those of the portable executor, which computes either prompts or new tokens in a step."""
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    tokens = {}
    for executor in ("native", "portable"):
        engine = Engine(make_model(), tokenizer, EngineConfig(max_prefill_tokens=4, page_size=4, executor=executor))  # type: ignore[arg-type]
        engine.add("runs", [1, 2, 3], params)
        engine.step()
        engine.add("comes", list(range(20)), params)
        steps = [[(event.request_id, event.token_id) for event in engine.step()] for _ in range(5)]
        if executor == "native":
            assert [[name for name, _ in step] for step in steps] == [["runs"]] * 4 + [["comes", "runs"]]
        while engine.has_work:
            steps.append([(event.request_id, event.token_id) for event in engine.step()])
        events = [event for step in steps for event in step]
        tokens[executor] = {name: [token for one, token in events if one == name] for name in ("runs", "comes")}
    assert tokens["native"] == tokens["portable"]


def test_a_step_takes_128_tokens_of_a_prompt(library: Library, make_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(make_model(), tokenizer, EngineConfig(page_size=4, executor="native"))
    assert engine.max_prefill_tokens == 128
