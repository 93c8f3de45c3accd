"""Settings of a run: what cannot be is refused by name, and the command line changes what it names."""

import argparse
from dataclasses import fields, replace
from typing import Any

import pytest

from model import ModelConfig
from tests.training.harness import MODEL, TRAIN
from training.config import TrainConfig
from training.flags import add_field_flags, field_prose, override
from training.recipes import RECIPES


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0}, {"batch_size": 0}, {"accumulation": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
        {"warmup_steps": 4}, {"warmup_steps": -1}, {"decay_fraction": 1.1}, {"optimizer": "x"}, {"weight_decay": -1.0},
        {"schedule": "linear"}, {"parallelism": "tp"}, {"fork_noise": -0.1}, {"final_fraction": 1.0},
        {"beta1": 1.0}, {"beta2": -0.1}, {"clip": 0.0}, {"dropout": 1.0}, {"precision": "float16"}, {"log_every": 0},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} must be"):
        replace(TRAIN, **setting)


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_field_flags(parser, ModelConfig)
    add_field_flags(parser, TrainConfig)
    return parser.parse_args(flags)


def test_flags_change_what_they_name_and_nothing_else() -> None:
    args = parse("--fork-layers", "0", "1", "--no-bias", "--dropout", "0.2", "--compile", "--precision", "bfloat16")
    assert override(MODEL, args) == replace(MODEL, fork_layers=(0, 1), bias=False)
    assert override(TRAIN, args) == replace(TRAIN, dropout=0.2, compile=True, precision="bfloat16")


def test_no_fork_layers_make_the_regular_twin() -> None:
    assert override(MODEL, parse("--fork-layers")) == replace(MODEL, fork_layers=())


def test_a_flag_that_makes_no_model_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="n_embd must be"):
        override(MODEL, parse("--n-embd", "17"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_forks_within_twice_its_block(name: str) -> None:
    model, train = RECIPES[name]()
    assert model.fork_layers
    assert model.ratio == 2
    assert train.precision in ("float32", "bfloat16")


@pytest.mark.parametrize("config", [ModelConfig, TrainConfig])
def test_every_flag_says_what_it_does(config: type) -> None:
    assert field_prose(config).keys() == {field.name for field in fields(config)}
