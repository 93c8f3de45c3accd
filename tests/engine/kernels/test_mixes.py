"""Engines that draw on the device complete any mix of requests as one that draws on the host."""

import random

import pytest

from tests.engine.draws import some_settings
from tests.engine.kernels.conftest import MakeEngine, on_kernels
from tests.engine.kernels.test_decode_ahead import assert_alike, plain, run
from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.model import Thoughtbubbles, Tokenizer


def some_requests(dice: random.Random, number: int, tokens: int) -> list[tuple[str, list[int], SamplingParams]]:
    requests = []
    for i in range(number):
        settings = some_settings(dice, 257)
        if isinstance(stops := settings.get("stop_token_ids"), tuple) and len(stops) > 9:
            settings["ignore_eos"] = True  # end-of-text is one of few tokens that are left, and is banned too
        settings |= {
            "max_tokens": dice.randrange(1, tokens + 1),
            "seed": dice.getrandbits(60),
            "fork_ratio": dice.choice([None, 1, 1.3, 2]),
            "prompt_logprobs": dice.choice([None, None, 1, 20]),
            "return_fork_counts": dice.random() < 0.2,
        }
        prompt = [dice.randrange(257) for _ in range(dice.randrange(1, 12))]
        requests.append((str(i), prompt, SamplingParams(**settings)))  # type: ignore[arg-type]
    return requests


def check(seed: int, requests: list[tuple[str, list[int], SamplingParams]], device: Engine, host: Engine) -> None:
    assert_alike(run(device, requests, seed), run(host, requests, seed))


@pytest.mark.sample(1)
@pytest.mark.parametrize("seed", range(6))
def test_any_mix(seed: int, small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    requests = some_requests(random.Random(seed), number=4, tokens=3)
    check(seed, requests, on_kernels(make_engine(small_model), [16, 64]), plain(small_model, tokenizer))


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(10))
def test_two_thousand_mixes(
    seed: int, small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    requests = some_requests(random.Random(1000 + seed), number=200, tokens=8)
    device = on_kernels(make_engine(small_model, max_batch_size=16), [16, 64])
    check(seed, requests, device, plain(small_model, tokenizer))
