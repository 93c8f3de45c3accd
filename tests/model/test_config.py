"""A configuration that cannot make a model is refused by its setting's name; one that can is restored from JSON."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from thoughtbubbles.model import ModelConfig, Selection

SMALL = ModelConfig(
    vocab_size=7, block_size=8, max_block_size=20, n_layer=3, n_head=2, n_embd=12, fork_layers=(0, 2), bias=False
)
COPY = replace(SMALL, fork_layers=(), averaging="rightmost", copies=3)


@pytest.mark.parametrize("name", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd", "copies", "loops"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None])
def test_sizes_are_whole_and_positive(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(
        ValueError, match=rf"^{name} must be a whole number from 1 to \d+, not {re.escape(repr(value))}$"
    ):
        replace(SMALL, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_block_size", 7),
        ("max_block_size", 20.0),
        ("max_block_size", None),
        ("n_embd", 13),
        ("n_embd", 14),  # heads of 7, where rotation needs an even width
        ("n_embd", 2),
        ("fork_layers", (3,)),
        ("fork_layers", (-1, 1)),
        ("fork_layers", (2, 0)),
        ("fork_layers", (1, 1)),
        ("fork_layers", [0, 2]),
        ("fork_layers", (0.0, 2.0)),
        ("fork_layers", ("0",)),
        ("fork_layers", 1),
        ("fork_layers", None),
        ("bias", "false"),
        ("bias", 1),
        ("norm_before_averaging", None),
        ("activation", "relu"),
        ("activation", None),
        ("averaging", "mean"),
        ("copies", 2),  # in a model that forks
        ("loops", 2),  # in a model that forks
        ("score_bias", 1),
        ("value_attenuation", None),
        ("select_by", "chance"),
        ("select_by", None),
        ("initial_keep_logit", "4"),
        ("initial_keep_logit", True),
        ("initial_keep_logit", float("inf")),
        ("initial_keep_logit", 4.0),  # SMALL has no biases
    ],
)
def test_a_refusal_names_its_setting(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=rf"^{name} must be .*, not {re.escape(repr(value))}$"):
        replace(SMALL, **{name: value})


@pytest.mark.parametrize(
    "value", [float("inf"), float("-inf"), float("nan"), 1e300, -1e39, pytest.param(10**400, id="10**400")]
)
def test_a_keep_logit_that_float32_has_not_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"^initial_keep_logit must be a number from -1000 to 1000, not "):
        replace(SMALL, bias=True, initial_keep_logit=value)


@pytest.mark.parametrize("averaging", ["residual", "logit"])
def test_copies_are_decoded_by_the_rightmost(averaging: str) -> None:
    with pytest.raises(ValueError, match=r"^averaging must be 'rightmost' when copies > 1"):
        replace(COPY, averaging=averaging)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        COPY,
        replace(SMALL, max_block_size=8),
        replace(SMALL, fork_layers=(), bias=True),
        replace(SMALL, fork_layers=(), loops=3),
        replace(SMALL, activation="gelu_tanh", averaging="logit", norm_before_averaging=True),
        replace(SMALL, score_bias=False, value_attenuation=False, residual_attenuation=False),
        replace(SMALL, select_by="random"),
        replace(SMALL, bias=True, initial_keep_logit=4.0),
    ],
)
def test_round_trip_through_json(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults_are_left_out_of_a_dictionary_at_will() -> None:
    settings = {"vocab_size": 7, "block_size": 8, "max_block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 2}
    regular = ModelConfig.from_dict(settings)
    assert regular.fork_layers == ()
    assert (regular.bias, regular.activation, regular.averaging) == (True, "gelu", "residual")
    assert (regular.norm_before_averaging, regular.copies, regular.ablated) == (False, 1, False)
    assert regular.loops == 1
    assert (regular.select_by, regular.initial_keep_logit) == ("score", 0.0)


OFF = {"score_bias": False, "value_attenuation": False, "residual_attenuation": False}


def test_an_ablation_that_means_nothing_is_refused() -> None:
    """Without fork layers there are no scores; scores that nothing weighs by would never learn."""
    with pytest.raises(ValueError, match=r"^fork_layers must be given where .*score_bias"):
        replace(SMALL, fork_layers=(), score_bias=False)
    with pytest.raises(ValueError, match=r"^averaging must be one that weighs by scores"):
        replace(SMALL, averaging="rightmost", **OFF)  # type: ignore[arg-type]
    assert replace(SMALL, averaging="rightmost", **{**OFF, "score_bias": True}).ablated  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("select_by", "random"), ("initial_keep_logit", 4.0)])
def test_a_control_of_forks_is_refused_without_forks(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=rf"^{name} must be .*, not {re.escape(repr(value))}$"):
        replace(SMALL, fork_layers=(), bias=True, **{name: value})


def test_unknown_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^unknown model settings: dropout, n_heads$"):
        ModelConfig.from_dict({**SMALL.to_dict(), "n_heads": 2, "dropout": 0.1})


def test_missing_settings_are_refused_by_name() -> None:
    settings = SMALL.to_dict()
    del settings["n_head"]
    with pytest.raises(ValueError, match="n_head"):
        ModelConfig.from_dict(settings)


@pytest.mark.parametrize("value", [None, 3, "02", [3], ["0"], {"0": 2}])
def test_a_dictionary_with_wrong_fork_layers_is_refused_by_name(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="fork_layers"):
        ModelConfig.from_dict({**SMALL.to_dict(), "fork_layers": value})


def test_what_follows_from_the_sizes() -> None:
    assert (SMALL.ratio, SMALL.head_width, SMALL.max_ratio) == (2.5, 6, 4)
    assert (COPY.max_ratio, replace(SMALL, fork_layers=(0, 1, 2)).max_ratio) == (1, 8)
    deep = replace(SMALL, n_layer=30, fork_layers=tuple(range(30)))
    assert Selection.of(deep, "causal", deep.max_ratio).max_block_size <= 1 << 27
