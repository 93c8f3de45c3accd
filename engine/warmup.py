"""What a device's first prompts would wait for, done when an engine is made: kernels load as they are first met."""

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.runner import Runner
from thoughtbubbles.engine.sampler import draw_tokens
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.model import Selection, Tokenizer

_DRAWS = (SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.9, top_k=40, min_p=0.01))
"""The ways that the host draws tokens."""


def warm_up(runner: Runner, cache: ForkCache, tokenizer: Tokenizer) -> None:
    """Prefill, and draw in every way that a step may have to. The cache and the tally are empty, before and after."""
    runner.prepare()
    request = Request("", (0,), _DRAWS[0], Selection.of(cache.config, "causal"), 0, Detokenizer(tokenizer))
    request.state = cache.open(request.selection)
    logits = runner.step([request], [1]).logits.float()
    for request.params in _DRAWS:
        draw_tokens([request], logits, tokenizer)
    cache.close([request.state])
    cache.clear()
    runner.tally.clear()
