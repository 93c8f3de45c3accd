"""The learning rate, as literal factors."""

from dataclasses import replace

import pytest

from tests.training.harness import MODEL, TRAIN
from thoughtbubbles.training.config import Schedule
from thoughtbubbles.training.schedule import RATIO_LEVELS, fork_noise, learning_rate_factor, ratio


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


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 1, 0.7, 0.4]),  # to a tenth, one step after the last
        ("cosine", [0.5, 1, 1, 0.96575, 0.86819, 0.72221, 0.55, 0.37779, 0.23181, 0.13425]),
    ],
)
def test_to_a_tenth(schedule: Schedule, expected: list[float]) -> None:
    config = replace(
        TRAIN, steps=10, warmup_steps=2, decay_fraction=0.3, schedule=schedule, final_fraction=0.1
    )  # fmt: skip
    assert [learning_rate_factor(step, config) for step in range(10)] == pytest.approx(expected, abs=1e-5)


def test_noise_falls_to_zero_over_the_run() -> None:
    config = replace(TRAIN, steps=4, decay_fraction=0.0, fork_noise=2.0)
    assert [fork_noise(step, config) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert fork_noise(0, replace(config, fork_noise=0.0)) == 0


def test_every_batch_draws_its_ratio_between_one_and_the_full_one() -> None:
    config = replace(TRAIN, random_ratio=True)
    drawn = [ratio(number, MODEL, config) for number in range(200)]
    assert drawn == [ratio(number, MODEL, config) for number in range(200)]
    assert len(set(drawn)) == RATIO_LEVELS
    assert min(drawn, key=float) == 1  # type: ignore[arg-type]
    assert max(drawn, key=float) == MODEL.ratio  # type: ignore[arg-type]
    assert drawn != [ratio(number, MODEL, replace(config, seed=1)) for number in range(200)]
    assert ratio(3, MODEL, TRAIN) is None
