"""The learning rate: warm-up, stable, decay."""

from training.config import TrainConfig


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """What the peak learning rate is multiplied with at `step` (from 0): (0, 1].

    Rises linearly over the warm-up, stays at 1, and falls linearly over the decay, to zero one step after the last.
    """
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    fall = (config.steps - step) / config.decay_steps if config.decay_steps else 1.0
    return min(rise, fall, 1.0)
