"""Schedules over a run: the learning rate, the noise on selection, the ratio of each batch."""

import math

import numpy as np

from thoughtbubbles.model import ModelConfig
from thoughtbubbles.training.config import TrainConfig

RATIO_LEVELS = 9
"""Number of ratios that a batch may draw. Few, because the compiled step has a graph for each."""


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Return the factor of the peak learning rate at `step` (from 0), in (0, 1].

    It rises linearly over the warm-up. Under `wsd` it then stays at 1 and falls linearly over the decay; under `cosine`
    it falls along half a cosine wave. Both reach `final_fraction` one step after the last.
    """
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    left = min(1.0, (config.steps - step) / config.decay_steps) if config.decay_steps else 1.0
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return min(rise, config.final_fraction + (1 - config.final_fraction) * left)


def fork_noise(step: int, config: TrainConfig) -> float:
    """Return the noise on selection at `step`. It falls linearly from `fork_noise` to zero one step after the last."""
    return config.fork_noise * (config.steps - step) / config.steps


def ratio(number: int, model: ModelConfig, config: TrainConfig) -> float | None:
    """Return the ratio r of batch `number` (from 0), the same on every rank; None: the model's own.

    With `random_ratio` it is one of `RATIO_LEVELS` ratios from 1 to κ / L, determined by the seed and the number.
    """
    if not config.random_ratio:
        return None
    level = int(np.random.default_rng((config.seed, number, RATIO_LEVELS)).integers(RATIO_LEVELS))
    return ratio_levels(model)[level]


def ratio_levels(model: ModelConfig) -> list[float]:
    """Return the ratios that a batch may draw."""
    return [1 + (model.ratio - 1) * level / (RATIO_LEVELS - 1) for level in range(RATIO_LEVELS)]
