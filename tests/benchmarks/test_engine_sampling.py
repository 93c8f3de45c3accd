"""The measurement of sampling runs: on a GPU nobody should find that it does not."""

import pytest
import torch

from benchmarks.engine import sampling
from thoughtbubbles.engine import Engine, EngineConfig
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer

pytest.importorskip("triton", reason="the kernels are Triton's")


@pytest.mark.parametrize("name", sampling.MIXES)
def test_every_mix_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "VOCABULARY", 600)
    sampler, arguments = sampling.make_sampler(2, name, "cuda" if torch.cuda.is_available() else "cpu")
    sampler.draw(**arguments)
    assert all(0 <= token < 600 for token in arguments["token"].tolist())
    assert sampler.state.drawn.tolist() == [1, 1, 0]


def test_every_mix_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "NEW", 4)
    config = ModelConfig(
        vocab_size=300, block_size=16, max_block_size=32, n_layer=2, n_head=1, n_embd=8, fork_layers=(1,)
    )
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, "bytes")
    engine = Engine(Thoughtbubbles(config).eval(), tokenizer, EngineConfig(max_batch_size=2))
    for first, others in sampling.MIXES.values():
        assert sampling.decode(engine, [[1, 2], [3]], [first, others]) > 0
