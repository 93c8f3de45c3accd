"""Models without parts of the attenuated block: the engine gives what their own forward gives, or leaves them alone."""

import pytest
import torch

from tests.engine.conftest import MakeModel
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import ModelConfig, Tokenizer
from thoughtbubbles.model.generate import generate

SWITCHES = ("score_bias", "value_attenuation", "residual_attenuation")


CONTROLS: list[dict[str, object]] = [
    *({switch: False} for switch in SWITCHES),
    {"max_block_size": 64},  # κ = L: scores, and no fork survives
    {"max_block_size": 80},
    {"fork_layers": (2, 4)},
]


@pytest.mark.parametrize("settings", CONTROLS, ids=str)
@torch.no_grad()
def test_the_cache_serves_an_ablated_model_as_its_forward_does(
    settings: dict[str, object], make_model: MakeModel, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    model = make_model(**settings)
    engine = Engine(model, tokenizer, EngineConfig(max_batch_size=4, page_size=4, cache_bytes=1 << 22))
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    prompts = prompts[:4]
    for prompt, completion in zip(prompts, engine.generate(prompts, params), strict=True):
        assert list(completion.token_ids) == generate(model, prompt, max_tokens=6, temperature=0.0)[-6:]


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_kernels_are_not_asked_for_what_they_do_not_compute(switch: str) -> None:
    decode_step = pytest.importorskip("thoughtbubbles.engine.cuda.decode", reason="needs Triton")
    sizes = {"vocab_size": 9, "block_size": 8, "max_block_size": 16, "n_layer": 2, "n_head": 1, "n_embd": 4}
    plain = {**sizes, "fork_layers": [1]}
    assert decode_step.decodes_alone(ModelConfig.from_dict(plain))
    assert not decode_step.decodes_alone(ModelConfig.from_dict({**plain, switch: False}))


@pytest.mark.parametrize("select_by", ["random", "kept"])
def test_a_model_whose_survivors_are_not_chosen_by_score_is_refused(
    select_by: str, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match=f"^select_by is '{select_by}': only models with select_by 'score'"):
        Engine(make_model(select_by=select_by), tokenizer)


def test_a_looped_model_is_refused(make_model: MakeModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^loops is 2: only models whose layers run once can be served"):
        Engine(make_model(fork_layers=(), loops=2), tokenizer)
