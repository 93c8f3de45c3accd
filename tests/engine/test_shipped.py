"""What the README promises of the engine, with the shipped checkpoint: its tokens are those of the naive forward."""

import pytest

from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import load_checkpoint, shipped_checkpoint
from thoughtbubbles.model.generate import generate

PROMPTS = ["The river", "Emma had not yet decided whether", "def f(x):", "🫧 water"]
"""On the way the likeliest token leads by 0.005 or more in logits, and float32 errs by 1e-4 at most: no ties."""


@pytest.mark.numeric
@pytest.mark.parametrize(("rule", "ratio"), [("causal", None), ("causal", 1.5), ("dynamic", None), ("fixed", None)])
def test_tokens_are_the_naive_samplers(rule: str, ratio: float | None) -> None:
    checkpoint = load_checkpoint(shipped_checkpoint())
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, fork_selection=rule, fork_ratio=ratio)
    completions = Engine(model, tokenizer, EngineConfig(max_batch_size=3)).generate(prompts, params)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert list(completion.token_ids) == generate(model, prompt, 8, rule=rule, ratio=ratio, temperature=0)
