"""The configuration of a Thoughtbubbles model (SPEC.md, "Words" and "Shapes")."""

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Literal, Self, get_args

from thoughtbubbles.model.fields import document_fields

Activation = Literal["gelu", "gelu_tanh"]
Averaging = Literal["residual", "logit", "rightmost"]
SelectBy = Literal["score", "random", "kept"]

LIMITS = {
    "vocab_size": 1 << 24, "block_size": 1 << 24, "max_block_size": 1 << 27, "n_layer": 1024, "n_head": 1 << 16,
    "n_embd": 1 << 17, "copies": 1024, "loops": 1024,
}  # fmt: skip
"""Far above any existing model: a larger value is a mistake, which would take minutes to fail."""
_MAX_LOGIT = 1000
"""From about 100 on P is 1 or 0 in float32."""
_SWITCHES = ("score_bias", "value_attenuation", "residual_attenuation")


@document_fields
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All settings that determine the shapes of the weights and the arithmetic of the forward pass.

    Raises `ValueError` naming the setting if a value is not allowed.
    """

    vocab_size: int
    """V, rows of the (tied) token embedding; may exceed the tokenizer's vocabulary, as padding."""
    block_size: int
    """L, tokens of a training block; `max_block_size` is the budget of a block of this length."""
    max_block_size: int
    """κ, streams that may leave a fork layer for a block of L tokens; κ = L keeps originals only."""
    n_layer: int
    """Number of layers (attenuated blocks)."""
    n_head: int
    """N, attention heads."""
    n_embd: int
    """D, width of the residual stream."""
    fork_layers: tuple[int, ...] = ()
    """Layers (from 0) that fork before their block runs; empty for the regular baseline."""
    bias: bool = True
    """Whether Linear and LayerNorm have a bias; the fork projection never has one."""
    activation: Activation = "gelu"
    """`gelu` is exact (the authors' PyTorch release), `gelu_tanh` the JAX code's approximation."""
    averaging: Averaging = "residual"
    """How a token's streams become its distribution (paper §2.5)."""
    norm_before_averaging: bool = False
    """With `residual`: apply the final LayerNorm to each stream, not to their sum (the authors' first release)."""
    copies: int = 1
    """k of the copy-k baseline, where every token starts as k streams; 1 in all other models."""
    loops: int = 1
    """Times that the layers run, all of them in order, with the same weights: a looped baseline outside SPEC.md."""
    score_bias: bool = True
    """Whether attention is biased by the cumulative scores of the keys. Off is an ablation outside SPEC.md."""
    value_attenuation: bool = True
    """Whether values are multiplied by P. Off is an ablation."""
    residual_attenuation: bool = True
    """Whether both residual updates are multiplied by P. Off is an ablation."""
    select_by: SelectBy = "score"
    """What ranks the candidates of a fork layer: their `score`. Two controls: a `random` number drawn in every forward
    pass, or `kept`, which ranks all existing streams above all new forks."""
    initial_keep_logit: float = 0.0
    """Mean of the keep logit in a new model: 0 is SPEC.md; with 4, kept streams start at P = 0.98. It only sets the
    initial bias of the LayerNorm before the fork scores."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            _require(_is_int(value) and 1 <= value <= limit, name, f"a whole number from 1 to {limit}", self)
        _require(self.max_block_size >= self.block_size, "max_block_size",
                 f"a whole number of at least block_size ({self.block_size})", self)  # fmt: skip
        _require(self.n_embd % (2 * self.n_head) == 0, "n_embd", f"a multiple of 2 * n_head ({2 * self.n_head})", self)
        _require(_rising(self.fork_layers, self.n_layer), "fork_layers",
                 f"a tuple of rising layer numbers from 0 to {self.n_layer - 1}", self)  # fmt: skip
        for name in ("bias", "norm_before_averaging", *_SWITCHES):
            _require(isinstance(getattr(self, name), bool), name, "true or false", self)
        _require(self.activation in get_args(Activation), "activation", f"one of {get_args(Activation)}", self)
        _require(self.averaging in get_args(Averaging), "averaging", f"one of {get_args(Averaging)}", self)
        _require(self.select_by in get_args(SelectBy), "select_by", f"one of {get_args(SelectBy)}", self)
        _require(self.select_by == "score" or bool(self.fork_layers), "select_by", "'score' without fork_layers", self)
        _require(_is_number(self.initial_keep_logit) and abs(self.initial_keep_logit) <= _MAX_LOGIT,
                 "initial_keep_logit", f"a number from -{_MAX_LOGIT} to {_MAX_LOGIT}", self)  # fmt: skip
        _require(self.initial_keep_logit == 0 or (self.bias and bool(self.fork_layers)), "initial_keep_logit",
                 "0 where bias is false or there are no fork_layers", self)  # fmt: skip
        _require(self.copies == 1 or not self.fork_layers, "copies", "1 in a model with fork_layers", self)
        _require(self.loops == 1 or not self.fork_layers, "loops", "1 in a model with fork_layers", self)
        _require(self.copies == 1 or self.averaging == "rightmost", "averaging", "'rightmost' when copies > 1", self)
        _require(not self.ablated or bool(self.fork_layers), "fork_layers", f"given where {_SWITCHES} are off", self)
        _require(self.averaging != "rightmost" or any(map(self._is_on, _SWITCHES)), "averaging",
                 f"one that weighs by scores where {_SWITCHES} are all off", self)  # fmt: skip

    @property
    def ratio(self) -> float:
        """Streams per token that the budget allows: r = κ / L."""
        return self.max_block_size / self.block_size

    @property
    def head_width(self) -> int:
        """H = D / N."""
        return self.n_embd // self.n_head

    @property
    def max_ratio(self) -> int:
        """2^(fork layers), at which every candidate survives under every rule; less if that κ is above the limit."""
        return min(1 << len(self.fork_layers), LIMITS["max_block_size"] // self.block_size)

    @property
    def ablated(self) -> bool:
        """Whether a part of the attenuated block (paper §2.4) is switched off."""
        return not all(map(self._is_on, _SWITCHES))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready copy; `from_dict` is its inverse."""
        return {**asdict(self), "fork_layers": list(self.fork_layers)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Return the configuration that `to_dict` described. Raise `ValueError` for an unknown or missing setting."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"unknown model settings: {', '.join(unknown)}")
        layers = settings.get("fork_layers", ())
        try:
            return cls(**{**settings, "fork_layers": tuple(layers) if isinstance(layers, list) else layers})
        except TypeError as error:
            raise ValueError(f"model settings are incomplete: {error}") from error

    def _is_on(self, switch: str) -> bool:
        on: bool = getattr(self, switch)
        return on


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rising(layers: object, end: int) -> bool:
    return (
        isinstance(layers, tuple) and all(map(_is_int, layers)) and all(a < b for a, b in pairwise((-1, *layers, end)))
    )


def _require(ok: bool, name: str, wanted: str, config: ModelConfig) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, not {reprlib.repr(getattr(config, name))}")
