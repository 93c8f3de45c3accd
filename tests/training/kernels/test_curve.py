"""A whole training by the fused loss ends where one by the model's own step ends, with forks: on a device alone.

Residual streams in bfloat16 passed every comparison of one step. After these 1,200 steps they had cost 0.010 to 0.023
nats.
"""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.data.loader import WindowLoader
from thoughtbubbles.training.data.token_file import read_tokens
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.measures import negative_log_likelihood, packed_windows
from thoughtbubbles.training.recipes import speed
from thoughtbubbles.training.step import LossFunction, TrainStep, autocast, next_token_loss

DATA = Path("data/corpus")
CONFIG = TrainConfig(
    steps=1200, batch_size=64, learning_rate=1e-3, warmup_steps=100, decay_fraction=0.3, weight_decay=0.1,
    precision="bfloat16", compile=True,
)  # fmt: skip


def final_loss(function: LossFunction) -> float:
    """The validation loss of one training, nats a token."""
    torch.compiler.reset()
    torch.manual_seed(0)
    ranks, (config, _) = Ranks(device=torch.device("cuda")), speed()
    with patch("thoughtbubbles.training.step.loss_function", return_value=function):
        learn = TrainStep(Thoughtbubbles(config).to(ranks.device), CONFIG, ranks)
    loader = WindowLoader(read_tokens(DATA, "train"), config.block_size, seed=0)
    for step in range(CONFIG.steps):
        learn(step, [loader.batch(step, CONFIG.batch_size)])
    windows = packed_windows(read_tokens(DATA, "val"), config.block_size)
    with autocast(ranks.device, CONFIG.precision):
        nats = negative_log_likelihood(learn.model.eval(), windows, "blockwise", 64)
    return nats / sum(window.predicted for window in windows)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler's own
def test_the_fused_loss_learns_as_the_models_own_step() -> None:
    if not DATA.exists():
        pytest.skip("needs data/corpus: `prepare` of 16M tokens, vocabulary 8,192")
    from thoughtbubbles.training.fused import fused_loss

    own = final_loss(next_token_loss)
    fused = [final_loss(fused_loss) for _ in range(2)]
    print(f"own {own:.4f}, fused {fused[0]:.4f} and {fused[1]:.4f}")
    # Equal runs differ by up to 0.008 (own 3.566; fused 3.567 and 3.559, of another seed 3.566 and 3.561). With
    # bfloat16 streams the mean of two was 0.017 to 0.023 above the own step.
    assert sum(fused) / len(fused) - own < 0.010
