"""Named runs: a model and how to train it. Any setting can be changed on the command line."""

from collections.abc import Callable

from model import ModelConfig
from training.config import TrainConfig

Recipe = tuple[ModelConfig, TrainConfig]


def shipped() -> Recipe:
    """The checkpoint in the repository: 11.6M parameters, 26 passes over 16M tokens, so regularised hard."""
    model = ModelConfig(
        vocab_size=8192, block_size=1024, max_block_size=2048, n_layer=12, n_head=4, n_embd=256, fork_layers=(3, 7, 11)
    )
    train = TrainConfig(
        steps=6500, batch_size=64, learning_rate=3e-3, warmup_steps=300, decay_fraction=0.5, weight_decay=0.3,
        dropout=0.15, precision="bfloat16", compile=True, validate_every=1300, save_every=1300, log_every=50,
    )  # fmt: skip
    return model, train


def speed() -> Recipe:
    """The shape that training speed is stated for."""
    model = ModelConfig(
        vocab_size=8192, block_size=512, max_block_size=1024, n_layer=12, n_head=6, n_embd=384, fork_layers=(3, 7, 11)
    )
    return model, TrainConfig(steps=1000, batch_size=128, precision="bfloat16", compile=True)


def tiny() -> Recipe:
    """Half a million parameters: to see it work on a CPU within minutes."""
    model = ModelConfig(
        vocab_size=8192, block_size=128, max_block_size=256, n_layer=4, n_head=2, n_embd=64, fork_layers=(1, 2)
    )
    return model, TrainConfig(steps=400, batch_size=8, learning_rate=2e-3, warmup_steps=40, validate_every=100)


RECIPES: dict[str, Callable[[], Recipe]] = {"shipped": shipped, "speed": speed, "tiny": tiny}
