"""The device's executor computes with weights that were replaced in place: its graphs have their addresses."""

import torch

from tests.engine.kernels.conftest import ON_GPU, MakeEngine, on_kernels
from tests.engine.kernels.test_decode_ahead import KINDS, PROMPTS, assert_alike, params, plain, run
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

TOKENS = 24 if ON_GPU else 2


def test_steps_that_were_made_before_read_the_new_weights(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    engine = on_kernels(make_engine(small_model), sizes=(8,))
    kinds = KINDS if ON_GPU else ("greedy", "restricted")
    requests = [
        (kind, PROMPTS[i % len(PROMPTS)], params(**{**KINDS[kind], "max_tokens": TOKENS}))
        for i, kind in enumerate(kinds)
    ]
    before = run(engine, requests)
    with torch.no_grad():
        for parameter in small_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    assert engine.drained
    engine.replace_weights({name: tensor.clone() for name, tensor in small_model.state_dict().items()})
    after = run(engine, requests)
    assert_alike(after, run(plain(small_model, tokenizer), requests))
    assert after["greedy"].token_ids != before["greedy"].token_ids
