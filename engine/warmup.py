"""Warm-up: kernels are loaded and memory is taken when first used, so an engine does that before its first request."""

from typing import Any

from thoughtbubbles.engine.batch import Plan
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.executor import Executor
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.model import Selection, Tokenizer

_DRAWS = (
    SamplingParams(temperature=0, logprobs=0),
    SamplingParams(logprobs=0),
    SamplingParams(top_p=0.9, top_k=40, min_p=0.01),
)
"""Requests that between them draw tokens in every way."""


def warm_up(executor: Executor[Any], cache: ForkCache, tokenizer: Tokenizer) -> None:
    """Prefill a token and draw the next in each way. Cache and tally are empty before and after."""
    executor.prepare()
    for params in _DRAWS:
        selection = Selection.of(cache.config, "causal")
        request = Request("", (0,), params, selection, 0, Detokenizer(tokenizer))
        request.state = cache.open(selection)
        for flight in executor.launch(Plan([request], [1], num_prefills=1)):
            executor.land(flight)
        cache.close([request.state])
        cache.clear()  # the smallest cache has a page for one of them
    executor.tally.clear()
