"""The kernels on a CUDA device where there is one, and in Triton's interpreter where not (tests/conftest.py)."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch

from thoughtbubbles.engine import Engine, EngineConfig
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="the kernels are Triton's")

MakeEngine = Callable[..., Engine]
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines compile what a test needs, and no more: on a device all that prompts may need would take each a while."""
    monkeypatch.setattr("thoughtbubbles.engine.warmup.warm_up", lambda *_: None)


@pytest.fixture
def small_model() -> Thoughtbubbles:
    """As small as a model with two forks can be, for the interpreter takes its time."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=257, block_size=64, max_block_size=128, n_layer=3, n_head=1, n_embd=16, fork_layers=(1, 2)
    )
    return lively(Thoughtbubbles(config).eval())


@pytest.fixture
def make_engine(tokenizer: Tokenizer) -> MakeEngine:
    """Engines that decode with the kernels."""

    def make(model: Thoughtbubbles, **settings: object) -> Engine:
        from thoughtbubbles.engine.cuda.decode_batch import DeviceBatch

        config = EngineConfig(**{"max_batch_size": 4, "page_size": 4, "cache_bytes": 1 << 21, **settings})  # type: ignore[arg-type]
        model = deepcopy(model).to(DEVICE)  # others go on with it where it was
        engine = Engine(model, tokenizer, config)
        if not ON_GPU:
            engine._device = DeviceBatch(model, engine.cache, engine._runner.tally, vocabulary=tokenizer.vocab_size)
        return engine

    return make


def on_kernels(engine: Engine, sizes: Sequence[int]) -> Engine:
    """The engine, that prefills with kernels wherever it runs, in steps of so many tokens."""
    from thoughtbubbles.engine.cuda.forward import DeviceForward

    engine._runner._cached = DeviceForward(
        engine.model, engine.cache, engine._runner.tally, vocabulary=engine.tokenizer.vocab_size, sizes=sizes
    )
    return engine


def lively(model: Thoughtbubbles) -> Thoughtbubbles:
    """Scores that differ enough for forks to live and die."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "forking_score" in name or "fork_embedding" in name or "wte" in name:
                parameter.normal_(std=0.5)
    return model
