"""Recipes: named pairs of a model and training settings. The command line can override every setting."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from thoughtbubbles.model import ModelConfig
from thoughtbubbles.training.config import TrainConfig

Recipe = tuple[ModelConfig, TrainConfig]


def shipped() -> Recipe:
    """Return the recipe of the repository's checkpoint: 11.6M parameters, 26 epochs of 16M tokens, much regularised."""
    model = ModelConfig(
        vocab_size=8192, block_size=1024, max_block_size=2048, n_layer=12, n_head=4, n_embd=256, fork_layers=(3, 7, 11)
    )
    train = TrainConfig(
        steps=6500, batch_size=64, learning_rate=3e-3, warmup_steps=300, decay_fraction=0.5, weight_decay=0.3,
        dropout=0.15, precision="bfloat16", compile=True, validate_every=1300, save_every=1300, log_every=50,
    )  # fmt: skip
    return model, train


def speed() -> Recipe:
    """Return the recipe whose training speed the documentation states."""
    model = ModelConfig(
        vocab_size=8192, block_size=512, max_block_size=1024, n_layer=12, n_head=6, n_embd=384, fork_layers=(3, 7, 11)
    )
    return model, TrainConfig(steps=1000, batch_size=128, precision="bfloat16", compile=True)


def tiny() -> Recipe:
    """Return a recipe that trains on a CPU within minutes: 725,000 parameters, of which 524,000 are the embedding."""
    model = ModelConfig(
        vocab_size=8192, block_size=128, max_block_size=256, n_layer=4, n_head=2, n_embd=64, fork_layers=(1, 2)
    )
    return model, TrainConfig(steps=400, batch_size=8, learning_rate=2e-3, warmup_steps=40, validate_every=100)


def paper(size: str, variant: str = "2l") -> Recipe:
    """Return a model of the paper and its training; `size` is one of `SIZES`, `variant` one of `VARIANTS`.

    Up to 772M as in the paper's first version: 75,000 steps of 64 blocks of 512 tokens (2.5B), AdamW, warm-up, stable,
    decay; forks before layers 3, 7, 11. 1.9B as in the second: 480 blocks per step, as many steps as in the authors'
    launch scripts before mid-training; forks before layers 2, 5, 8, GELU by tanh, the authors' shape. For the other
    sizes the paper states only the number of parameters: these shapes are ours.
    """
    n_layer, n_head, n_embd, batch_size = SIZES[size]
    large = size == "1.9b"
    model = ModelConfig(
        vocab_size=50304, block_size=512, max_block_size=1024, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
        fork_layers=(2, 5, 8) if large else (3, 7, 11), activation="gelu_tanh" if large else "gelu",
    )  # fmt: skip
    steps, sequences = (68_267, 480) if large else (75_000, 64)
    train = TrainConfig(
        steps=steps, batch_size=batch_size, accumulation=sequences // batch_size, learning_rate=2.5e-4,
        warmup_steps=steps // 200, decay_fraction=0.01, precision="bfloat16", compile=True, recompute=large,
        parallelism="fsdp" if large else "ddp", validate_every=2500, save_every=2500, log_every=50,
    )  # fmt: skip
    return replace(model, **VARIANTS[variant]), train


def pretrain(train: TrainConfig) -> TrainConfig:
    """Return the settings of the paper's first phase, which are the recipe's."""
    return train


def midtrain(train: TrainConfig) -> TrainConfig:
    """Return the settings of the second phase, from a pretrained checkpoint: 8,500 steps of decay to a tenth."""
    return replace(train, steps=8500, warmup_steps=0, decay_fraction=1.0, final_fraction=0.1, validate_every=250)


def finetune(train: TrainConfig) -> TrainConfig:
    """Return the settings of the third phase: 3,250 steps at the learning rate with which the second ended."""
    rate = train.learning_rate / 10
    return replace(train, steps=3250, learning_rate=rate, warmup_steps=325, decay_fraction=0.0, validate_every=250)


SIZES = {
    "150m": (16, 12, 768, 64),
    "319m": (21, 16, 1024, 32),
    "772m": (36, 20, 1280, 16),
    "1.9b": (36, 16, 2048, 32),
}
"""Layers, heads, width and `batch_size` of the paper's models."""

VARIANTS: dict[str, dict[str, Any]] = {
    "2l": {},
    "4l": {"max_block_size": 2048},
    "regular": {"fork_layers": (), "max_block_size": 512},
    "copy-3": {"fork_layers": (), "max_block_size": 512, "copies": 3, "averaging": "rightmost"},
    "copy-5": {"fork_layers": (), "max_block_size": 512, "copies": 5, "averaging": "rightmost"},
}
"""Changes to the model with κ = 2L: SPEC.md, "Baselines of the paper"."""

PHASES: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "pretrain": pretrain, "midtrain": midtrain, "finetune": finetune
}  # fmt: skip
"""The training settings of each phase; its data is the file of that name in `MIXTURES`."""

MIXTURES = Path(__file__).parent / "mixtures"

RECIPES: dict[str, Callable[[], Recipe]] = {"shipped": shipped, "speed": speed, "tiny": tiny} | {
    size if variant == "2l" else f"{size}-{variant}": partial(paper, size, variant)
    for size in SIZES
    for variant in VARIANTS
}
