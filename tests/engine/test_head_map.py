"""One map of the heads does what the model's attention does in three steps."""

import pytest
import torch

from thoughtbubbles.engine.portable.head_map import HeadMaps
from thoughtbubbles.model import ModelConfig
from thoughtbubbles.model.attention import attenuate, score_channel
from thoughtbubbles.model.rotary import rotate, rotation

SIZES = {"vocab_size": 9, "block_size": 8, "max_block_size": 16, "n_layer": 2, "n_head": 3, "n_embd": 24}


@pytest.mark.parametrize("settings", [
    {"fork_layers": (1,)},
    {"fork_layers": (1,), "score_bias": False},
    {"fork_layers": (1,), "value_attenuation": False},
    {"fork_layers": (1,), "residual_attenuation": False},
    {"fork_layers": (), "max_block_size": 8},
])  # fmt: skip
def test_it_rotates_weighs_and_sets_the_score_channel(settings: dict[str, object]) -> None:
    config = ModelConfig.from_dict({**SIZES, **settings})
    heads = torch.randn(5, 3, config.n_head, config.head_width)
    positions = torch.tensor([1.0, 1.5, 2.0, 700.25, 701.0])
    score = -torch.rand(5) if config.fork_layers else torch.zeros(5)
    by = HeadMaps(config, torch.device("cpu")).of(positions, score)

    q, k, v = heads.permute(1, 2, 0, 3)[:, None]
    turned = rotation(positions[None], config.head_width)
    q, k = rotate(q, turned), rotate(k, turned)
    if config.fork_layers and config.score_bias:
        q, k = score_channel(q, k, score[None])
    if config.fork_layers and config.value_attenuation:
        v = attenuate(v, score[None])
    torch.testing.assert_close(by(heads).permute(1, 2, 0, 3)[:, None], torch.stack((q, k, v)), atol=1e-6, rtol=1e-6)
    weight = score.exp() if config.residual_attenuation else torch.ones(5)
    assert torch.equal(by.weight[:, 0], weight)
