"""What tests of drawing share: settings, requests, logits, seeds that make a chosen hash, how far counts deviate."""

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampling import _GOLDEN, _MIX_1, _MIX_2
from thoughtbubbles.model import ModelConfig, Selection, Tokenizer

CONFIG = ModelConfig(vocab_size=8, block_size=8, max_block_size=16, n_layer=1, n_head=1, n_embd=4, fork_layers=())
END = 0

MASK = 2**64 - 1
EXTREME_BITS = (0, MASK, 2**63, 2**63 - 1, 0xFFFFFF << 40, 1 << 11)
"""Hashes at which a careless conversion to float32 gives 0 or 1, and so noise that is infinite."""


def seed_of(bits: int, position: int, token: int) -> int:
    """The seed, int64, whose hash for this position and token is `bits`: SplitMix64's finaliser can be undone."""
    seed = _unmix((_unmix((_unmix(bits) - token) & MASK) - position) & MASK)
    return seed - (1 << 64) if seed >> 63 else seed


def _unmix(x: int) -> int:
    x = _unshift(x, 31) * pow(_MIX_2, -1, 1 << 64) & MASK
    x = _unshift(x, 27) * pow(_MIX_1, -1, 1 << 64) & MASK
    return (_unshift(x, 30) - _GOLDEN) & MASK


def _unshift(x: int, by: int) -> int:
    """The y for which y ^ (y >> by) is x."""
    y = x
    for _ in range(64 // by):
        y = x ^ (y >> by)
    return y


def uneven_logits(vocabulary: int, rare: float) -> Tensor:
    """Logits (V,) under which all but 64 tokens, anywhere in the vocabulary, have the probability `rare` together."""
    rank = torch.arange(vocabulary, dtype=torch.float64)
    common = (rank < 64) / (rank + 1)
    p = (1 - rare) * common / common.sum() + rare * (rank >= 64) / (vocabulary - 64)
    return p.log().float()[torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))]


def deviation(counts: Tensor, logits: Tensor) -> float:
    """χ² of draws (V,) against the softmax of logits (V,), in standard deviations from what chance gives.

    Tokens that are expected fewer than ten times are counted as one.
    """
    expected = logits.double().softmax(0) * counts.sum()
    own = expected >= 10
    seen, want = counts[own].double(), expected[own]
    if not own.all():
        seen, want = torch.cat((seen, counts[~own].sum()[None])), torch.cat((want, expected[~own].sum()[None]))
    freedom = len(seen) - 1
    return float((((seen - want) ** 2 / want).sum() - freedom) / (2 * freedom) ** 0.5)


def some_settings(dice: random.Random, vocabulary: int) -> dict[str, object]:
    """Return settings of `SamplingParams` that change what is drawn or reported: any of them, or three."""
    choices: dict[str, list[object]] = {
        "temperature": [0, 1e-38, 1e-5, 0.1, 0.7, 1.0, 1.0, 2.0],
        "top_k": [0, 0, 1, 2, 5, 50, vocabulary - 1, vocabulary, vocabulary + 9],
        "top_p": [1.0, 1.0, 1e-46, 1e-3, 0.3, 0.9, 0.95, 1 - 2**-20],
        "min_p": [0, 0, 1e-46, 1e-3, 0.05, 0.5, 1.0],
        "presence_penalty": [0, 0, -2, 0.1, 2],
        "frequency_penalty": [0, 0, -1.3, 0.7],
        "repetition_penalty": [1, 1, 1e-46, 0.5, 1.1, 1.3, 1e30],
        "logit_bias": [{}, {}, {2: 100}, {1: -100, 3: 5.5, 4: 0.1}, dict.fromkeys(range(1, vocabulary, 2), -0.3)],
        "min_tokens": [0, 0, 1, 2, 9],
        "stop_token_ids": [(), (2,), tuple(range(1, vocabulary - 2)), (3, 4, 5)],
        "ignore_eos": [False, True],
        "logprobs": [None, None, 0, 1, 5, 20],
    }
    settings = {name: dice.choice(values) for name, values in choices.items()}
    return settings if dice.random() < 0.5 else {name: settings[name] for name in dice.sample(list(settings), 3)}


@dataclass
class Words:
    """What the host's functions ask of a tokenizer."""

    vocab_size: int
    end_of_text: int = END


def request(tokenizer: Tokenizer, seed: int = 1, prompt: tuple[int, ...] = (1,), **settings: object) -> Request:
    params = SamplingParams(**{"max_tokens": 64, **settings})  # type: ignore[arg-type]
    selection = Selection.of(CONFIG, "causal", None)
    return Request(str(seed), prompt, params, selection, seed, Detokenizer(tokenizer, (), include_stop=False))


def some_logits(dice: random.Random, rows: int, columns: int, vocabulary: int) -> Tensor:
    """Logits (rows,columns): wide or flat, with or without ties, some impossible, in bfloat16 or not."""
    logits = torch.randn(rows, columns) * dice.choice([0.3, 1, 4, 12])
    match dice.randrange(6):
        case 0:
            logits = logits.round()  # ties everywhere
        case 1:
            logits[:, :] = logits[:, :1]  # nothing but ties
        case 2:
            logits[:, torch.rand(columns) < 0.5] = -torch.inf
            logits[:, dice.randrange(3, 7)] = 1.5
            logits[:, vocabulary - 1] = 0.5  # which no settings ban: a row must leave something to draw
        case 3:
            logits[:, : columns // 2] = logits[:, :1]  # half of them tie
        case 4:
            logits = logits.abs().neg() * 1e-3 + dice.choice([0.0, -0.0, 5.0])
    return logits.bfloat16() if dice.random() < 0.5 else logits


def some_request(dice: random.Random, tokenizer: Tokenizer, seed: int, vocabulary: int) -> Request:
    """A request that asks for any of what there is."""
    asked = some_settings(dice, vocabulary)
    prompt = tuple(dice.randrange(vocabulary) for _ in range(dice.randrange(1, 12)))
    made = request(tokenizer, seed, prompt, **asked)
    made.output += [dice.randrange(vocabulary) for _ in range(dice.choice([0, 0, 1, 7]))]
    return made


def assert_alike(device: list[Scored | None], host: list[Scored | None]) -> None:
    for ours, theirs in zip(device, host, strict=True):
        assert (ours is None) == (theirs is None)
        if ours and theirs:
            assert ours[0] == pytest.approx(theirs[0], abs=1e-4, rel=1e-5)
            assert [i for i, _ in ours[1]] == [i for i, _ in theirs[1]]
            assert [p for _, p in ours[1]] == pytest.approx([p for _, p in theirs[1]], abs=1e-4, rel=1e-5)
