"""What a device's first prompts would wait for, done when an engine is made: kernels compile as they are first met.

How a product is cut goes by the rows that are usual, attention by the rows of one prompt, and with every cut comes a
kernel of its own. Each is for twice as many rows as the one before, or more: so prompts of 1, 2, 4, … tokens meet all.
"""

from collections.abc import Sequence

from engine.config import EngineConfig
from engine.detokenizer import Detokenizer
from engine.drawing import draw_tokens
from engine.fork_cache import ForkCache
from engine.kernels.tiles import MANY_ROWS
from engine.request import Request
from engine.runner import Runner
from engine.sampling_params import SamplingParams
from model import Selection, Tokenizer

_DRAWS = (SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.9, top_k=40, min_p=0.01))
"""The ways that the host draws tokens."""


def warm_up(runner: Runner, cache: ForkCache, tokenizer: Tokenizer, config: EngineConfig) -> None:
    """Prefill and draw in every way that a step may have to. The cache and the tally are empty, before and after."""
    selections = dict.fromkeys(Selection.of(cache.config, "causal", ratio) for ratio in (None, cache.config.max_ratio))
    places, max_tokens = cache.ledger.ids.shape
    for tokens in prompt_lengths(max(config.max_prefill_tokens, max_tokens), max_tokens, places):
        for selection in selections:
            if cache.fits([cache.pages_needed(selection, n) for n in tokens]):
                _prefill(runner, cache, tokenizer, selection, tokens)
    runner.tally.clear()


def prompt_lengths(most: int, longest: int, places: int) -> list[list[int]]:
    """Batches of prompts, of 1, 2, 4, … tokens together and of as many as a step may take, or of which all are alike.

    Those are `most`; at most so many `places` have prompts, each at most as long as the `longest`.
    """
    most = min(most, longest * places, MANY_ROWS)
    totals = [*(1 << i for i in range((most - 1).bit_length())), most]
    return [[min(longest, total - start) for start in range(0, total, longest)] for total in totals]


def _prefill(
    runner: Runner, cache: ForkCache, tokenizer: Tokenizer, selection: Selection, tokens: Sequence[int]
) -> None:
    """Prompts of so many tokens each, and a draw after them in every way; nothing of them is kept."""
    requests = [
        Request(str(i), (0,) * n, _DRAWS[0], selection, 0, Detokenizer(tokenizer)) for i, n in enumerate(tokens)
    ]
    states = [cache.open(selection) for _ in requests]
    for request, state in zip(requests, states, strict=True):
        request.state = state
    logits = runner.step(requests, list(tokens)).logits
    for params in _DRAWS:
        for request in requests:
            request.params = params
        draw_tokens(requests, logits, tokenizer)
    cache.close(states)
    cache.clear()
