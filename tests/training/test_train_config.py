"""Settings of a run: what cannot be is refused by name, and the command line changes what it names."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.harness import MODEL, TRAIN
from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.model.fields import field_docs
from thoughtbubbles.training.__main__ import main
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.flags import add_field_flags, override
from thoughtbubbles.training.recipes import PHASES, RECIPES, SIZES
from thoughtbubbles.training.schedule import learning_rate_factor


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


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ({"steps": 1e3}, "a whole number, not 1000.0"), ({"batch_size": True}, "a whole number, not True"),
        ({"validate_every": 0.5}, "a whole number, not 0.5"), ({"seed": "1"}, "a whole number, not '1'"),
        ({"learning_rate": "1e-3"}, "a number, not '1e-3'"), ({"dropout": False}, "a number, not False"),
        ({"clip": None}, "a number, not None"), ({"compile": "no"}, "true or false, not 'no'"),
        ({"random_ratio": 1}, "true or false, not 1"), ({"precision": ["float32"]}, r"one of .*, not \['float32'\]"),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(setting: dict[str, Any], wanted: str) -> None:
    """As a study's file may have it: `steps = 1e3` is a float in TOML."""
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} must be {wanted}$"):
        replace(TRAIN, **setting)
    assert replace(TRAIN, learning_rate=np.float64(1), clip=2).clip == 2


FLOATS = [field.name for field in fields(TrainConfig) if field.type is float]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", FLOATS)
def test_a_number_that_is_not_finite_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value}$"):
        override(TRAIN, parse(f"--{name.replace('_', '-')}={value}"))


def test_a_recipe_s_warm_up_in_a_short_run_is_refused_with_a_flag_that_the_run_can_have() -> None:
    with pytest.raises(ValueError, match=r"the 8 steps before the decay, such as --warmup-steps 4, not 40$"):
        override(RECIPES["tiny"]()[1], parse("--steps", "10"))
    assert override(RECIPES["tiny"]()[1], parse("--steps", "10", "--warmup-steps", "4")).steps == 10


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


@pytest.mark.parametrize(
    "command", [["train", "--out", "run", "--data"], ["evaluate", "--data"], ["analyse", "--data"]]
)
def test_no_threads_at_all_are_refused(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that computes has the flag: with a thread on every busy core all wait for the slowest."""
    assert main([*command, str(tmp_path), "--threads", "0"]) == 2
    assert "threads must be from 1 to 1024, not 0" in capsys.readouterr().err


def test_a_flag_that_makes_no_model_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="n_embd must be"):
        override(MODEL, parse("--n-embd", "17"))


@pytest.mark.parametrize("name", ["shipped", "speed", "tiny", *SIZES])
def test_every_recipe_forks_within_twice_its_block(name: str) -> None:
    model, train = RECIPES[name]()
    assert model.fork_layers
    assert model.ratio == 2
    assert train.precision in ("float32", "bfloat16")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.split("-")[0] in SIZES])
def test_parameters_are_those_of_the_name_within_two_percent(name: str) -> None:
    model, _ = RECIPES[name]()
    with torch.device("meta"):
        parameters = sum(weights.numel() for weights in Thoughtbubbles(model).parameters())
    size = name.split("-", maxsplit=1)[0]
    assert parameters == pytest.approx(float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]], rel=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_the_paper_s_models_and_baselines_differ_in_nothing_else(size: str) -> None:
    model, train = RECIPES[size]()
    changed = {variant: RECIPES[f"{size}-{variant}"]() for variant in ("4l", "regular", "copy-3", "copy-5")}
    assert all(how == train for _, how in changed.values())
    regular = replace(model, fork_layers=(), max_block_size=512)
    assert {variant: what for variant, (what, _) in changed.items()} == {
        "4l": replace(model, max_block_size=2048),
        "regular": regular,
        "copy-3": replace(regular, copies=3, averaging="rightmost"),
        "copy-5": replace(regular, copies=5, averaging="rightmost"),
    }


def test_the_paper_s_runs_see_as_many_tokens_as_it_says() -> None:
    for size in ("150m", "319m", "772m"):
        model, train = RECIPES[size]()
        assert train.steps * train.sequences_per_step * model.block_size == pytest.approx(2.5e9, rel=0.02)
    _, train = RECIPES["1.9b"]()
    midtrained = PHASES["midtrain"](train)
    assert midtrained.steps * midtrained.sequences_per_step * 512 == pytest.approx(2e9, rel=0.05)


def test_the_phases_go_down_to_a_tenth_and_stay_there() -> None:
    _, train = RECIPES["1.9b"]()
    midtrained, finetuned = PHASES["midtrain"](train), PHASES["finetune"](train)
    end = midtrained.learning_rate * learning_rate_factor(midtrained.steps - 1, midtrained)
    assert learning_rate_factor(0, midtrained) == 1
    assert end == pytest.approx(train.learning_rate / 10, rel=0.002)
    assert finetuned.learning_rate * learning_rate_factor(finetuned.steps - 1, finetuned) == pytest.approx(
        end, rel=0.002
    )


@pytest.mark.parametrize("config", [ModelConfig, TrainConfig])
def test_every_flag_says_what_it_does(config: type) -> None:
    assert field_docs(config).keys() == {field.name for field in fields(config)}
