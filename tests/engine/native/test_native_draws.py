"""Engines that draw in the library complete requests as those that draw on the host, token for token."""

import random

import pytest

from tests.engine.draws import some_settings
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import Thoughtbubbles, Tokenizer


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8}, {"temperature": 1.3, "top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1}, {"min_tokens": 9},
        {"temperature": 0, "presence_penalty": 1.0}, {"logprobs": 3}, {"repetition_penalty": 1.3},
        {"logit_bias": {7: 5.0}}, {"return_fork_counts": True}, {"prompt_logprobs": 2},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_gives_the_portable_executors_tokens(
    settings: dict[str, object], model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    ids, texts = [], []
    for executor in ("native", "portable"):
        engine = Engine(model, tokenizer, EngineConfig(max_batch_size=5, page_size=4, executor=executor))  # type: ignore[arg-type]
        params = SamplingParams(**{"max_tokens": 12, "seed": 11, "fork_ratio": 1.6, **settings})  # type: ignore[arg-type]
        completions = engine.generate(prompts[:10], params)
        ids.append([each.token_ids for each in completions])
        texts.append([(each.text, each.finish_reason, each.events[-1].fork_count) for each in completions])
    assert ids[0] == ids[1]
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("library")
@pytest.mark.sample(2)
@pytest.mark.parametrize("seed", range(12))
def test_requests_that_each_ask_for_something_else(seed: int, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    """With few pages, so that some are preempted and drawn anew, and prompts in chunks beside others' new tokens."""
    completed = []
    for executor in ("native", "portable"):
        dice = random.Random(seed)
        config = EngineConfig(
            max_batch_size=5, page_size=4, cache_bytes=1 << 19, max_prefill_tokens=9, executor=executor
        )  # type: ignore[arg-type]
        engine = Engine(model, tokenizer, config)
        for i in range(24):
            settings = some_settings(dice, 257)
            if isinstance(stops := settings.get("stop_token_ids"), tuple) and len(stops) > 9:
                settings["ignore_eos"] = True  # end-of-text is one of few tokens that are left, and is banned too
            settings |= {"max_tokens": dice.randint(1, 30), "seed": dice.getrandbits(60)}
            engine.add(str(i), [dice.randrange(257) for _ in range(dice.randint(1, 30))], SamplingParams(**settings))  # type: ignore[arg-type]
        tokens: dict[str, list[int | None]] = {}
        while engine.has_work:
            for event in engine.step():
                tokens.setdefault(event.request_id, []).append(event.token_id)
        completed.append(tokens)
    assert completed[0] == completed[1]
