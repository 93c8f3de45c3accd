"""Small models with lively forks, a vocabulary of bytes, and engines over them."""

import random
from collections.abc import Callable

import pytest
import torch

from thoughtbubbles.engine import Engine, EngineConfig
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer

MakeModel = Callable[..., Thoughtbubbles]


@pytest.fixture
def tokenizer() -> Tokenizer:
    """256 bytes and end-of-text."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")


def lively_model(**settings: object) -> Thoughtbubbles:
    """A random model whose scores differ enough that forks live and die."""
    sizes = {
        "vocab_size": 257, "block_size": 64, "max_block_size": 128, "n_layer": 5, "n_head": 2, "n_embd": 32,
        "fork_layers": (1, 2, 4),
    }  # fmt: skip
    torch.manual_seed(0)
    model = Thoughtbubbles(ModelConfig.from_dict({**sizes, **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "forking_score" in name or "fork_embedding" in name or "wte" in name:
                parameter.normal_(std=0.5)
    return model


@pytest.fixture
def make_model() -> MakeModel:
    return lively_model


@pytest.fixture
def model(make_model: MakeModel) -> Thoughtbubbles:
    return make_model()


@pytest.fixture
def engine(model: Thoughtbubbles, tokenizer: Tokenizer) -> Engine:
    """Small pages, so that many of them are in play."""
    return Engine(model, tokenizer, EngineConfig(max_batch_size=8, page_size=4, cache_bytes=1 << 22))


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts of many lengths; every fourth repeats one token, so that scores tie."""
    dice = random.Random(0)
    return [
        [dice.randrange(256)] * n if i % 4 == 3 else [dice.randrange(256) for _ in range(n)]
        for i, n in enumerate(dice.randint(1, 40) for _ in range(24))
    ]
