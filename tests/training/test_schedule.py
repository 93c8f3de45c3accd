"""The learning rate, as literal factors."""

from dataclasses import replace

import pytest

from tests.training.harness import TRAIN
from training.schedule import learning_rate_factor


def factors(warmup_steps: int, decay_fraction: float) -> list[float]:
    config = replace(TRAIN, steps=10, warmup_steps=warmup_steps, decay_fraction=decay_fraction)
    return [learning_rate_factor(step, config) for step in range(10)]


@pytest.mark.parametrize(
    ("warmup_steps", "decay_fraction", "expected"),
    [
        (4, 0.4, [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (0, 0.5, [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        (2, 0.0, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (0, 1.0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_warm_up_stable_decay(warmup_steps: int, decay_fraction: float, expected: list[float]) -> None:
    assert factors(warmup_steps, decay_fraction) == pytest.approx(expected)
