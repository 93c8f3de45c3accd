"""The library's draws are those of `engine.sampling`, token for token."""

import random

import pytest
import torch

from tests.engine.conftest import MakeModel
from tests.engine.native.conftest import MakeForward
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.portable.forward import Chunk
from thoughtbubbles.engine.sampling import Draw, sample
from thoughtbubbles.model import Selection, Thoughtbubbles, Tokenizer


@pytest.mark.parametrize("temperature", [1e-5, 0.3, 1.0, 2.0])
def test_draws_by_seed_and_position(temperature: float, make_model: MakeModel, make_native: MakeForward) -> None:
    model = make_model(vocab_size=300)
    cache = ForkCache(model.config, max_tokens=4, total_bytes=1 << 22, page_size=4, like=model.transformer.wte.weight)
    forward, selection = make_native(model, cache), Selection.of(model.config, "causal")
    dice = random.Random(temperature)
    for _ in range(60):
        states = [cache.open(selection) for _ in range(16)]
        seeds, positions = [dice.getrandbits(64) - (1 << 63) for _ in states], [dice.randrange(5000) for _ in states]
        chunks = [
            Chunk([dice.randrange(256)], state, selection, seed=seed, drawn=position, temperature=temperature)
            for state, seed, position in zip(states, seeds, positions, strict=True)
        ]
        extended = forward.extend(chunks)
        params = [SamplingParams(temperature=temperature)] * len(states)
        draw = Draw.of(params, seeds, positions, torch.device("cpu"))
        assert extended.drawn == sample(extended.logits[:, :257].clone(), draw).tolist()
        cache.close(states)
        cache.clear()


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
