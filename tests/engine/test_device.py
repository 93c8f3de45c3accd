"""Every tensor of a step is made on the model's device; machines without an accelerator can check that too."""

import pytest
import torch

from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

EVERYTHING = {
    "max_tokens": 10, "temperature": 0.8, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "presence_penalty": 0.1, "seed": 1,
    "repetition_penalty": 1.1, "logit_bias": {3: 1.0}, "logprobs": 2, "prompt_logprobs": 1, "min_tokens": 2,
    "return_fork_counts": True,
}  # fmt: skip


@pytest.mark.parametrize(("rule", "requests"), [("causal", 9), ("dynamic", 3)])
def test_no_tensor_is_made_elsewhere(
    rule: str, requests: int, model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """A tensor made without naming a device lands on `meta` here, where it cannot meet the model's."""
    params = SamplingParams(**EVERYTHING, fork_selection=rule)  # type: ignore[arg-type]
    engine = Engine(model, tokenizer, EngineConfig(max_batch_size=8, page_size=4, cache_bytes=250_000))
    with torch.device("meta"):
        completions = engine.generate(prompts[:requests], params)
    assert all(len(c.token_ids) >= 2 for c in completions)


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_tokens(model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    on_cpu = Engine(model, tokenizer).generate(prompts, params)
    on_gpu = Engine(model.to("cuda"), tokenizer).generate(prompts, params)
    assert [c.token_ids for c in on_gpu] == [c.token_ids for c in on_cpu]
