"""Interventions on a forward pass: shift, force or forbid forks, edit streams, read or replace any quantity.

Each hook point is a quantity of SPEC.md. In the order in which a layer computes them:

| point | shape | quantity |
|---|---|---|
| `before_fork` | (B,S,D) | x that enters the fork; fork layers only, as the next two |
| `fork_logits` | (B,S,2) | s = W_f · LN_f(x), fork logit and keep logit, every `ForkBias` added |
| `candidate_scores` | (B,2S) | c + max(logsigmoid(s), -20) of both candidates of each stream |
| `before_block` | (B,S',D) | x after the fork; in layers without one, x that enters |
| `score` | (B,S') | c, from this layer on; P = exp(c) |
| `attention_pattern` | (B,N,S',S') | softmax((q·k + c) / sqrt(H)), float32 |
| `attention_out` | (B,S',D) | Attention(LN_1(x)), before it is multiplied by P |
| `after_attention` | (B,S',D) | x + P · Attention(LN_1(x)) |
| `mlp_out` | (B,S',D) | MLP(LN_2(x)), before it is multiplied by P |
| `after_block` | (B,S',D) | x + P · MLP(LN_2(x)) |

Letters: B batch, T tokens, S streams before the fork of a layer, S' after it, D model width, N heads, H head width.
"""

import reprlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from thoughtbubbles.model.attention import Attend, attention_weights
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.fields import document_fields
from thoughtbubbles.model.segments import token_streams

StreamPoint = Literal["before_fork", "before_block", "attention_out", "after_attention", "mlp_out", "after_block"]
"""The points whose quantity is a vector of each stream, (B,S,D)."""
Point = Literal[StreamPoint, "fork_logits", "candidate_scores", "score", "attention_pattern"]
"""All hook points; the module's docstring has their shapes."""
Select = Literal["by_rule", "always", "never"]

_OF_FORKS = ("before_fork", "fork_logits", "candidate_scores")
Tap = Callable[[Point, Tensor], Tensor]
"""Passes a quantity on, as it is or replaced."""


def untouched(_point: Point, value: Tensor) -> Tensor:
    """Return the quantity as it is: the tap of a forward pass without interventions."""
    return value


@document_fields
@dataclass(frozen=True, kw_only=True)
class ForkBias:
    """An intervention in the forks that one fork layer makes of one token's streams.

    The fork logit of each of the token's streams becomes s + `bias`. All else follows from SPEC.md: the fork copy has
    log p = max(logsigmoid(s + bias), -20), its cumulative score is c + log p and its P = exp(c + log p), by which
    candidates are compared and survivors weighed. The keep logit and the kept streams' scores do not change.

    `select` = `never`: none of these fork copies survives, and they do not count as candidates. `always`: all of them
    survive, whatever their scores. They join the forced candidates of SPEC.md, "Fork", so they take places of the
    budget: `blockwise`, `dynamic` and `fixed` keep the forced, and the highest-scoring others, max(forced, κ') in all.
    Under `causal` they rank above every other candidate in rule (a) and count as survivors in rule (b), so later
    tokens get fewer forks. If the forced are more than the budget, they all survive, and no other fork does.
    """

    layer: int
    """The fork layer, counted from 0."""
    position: int
    """The token, counted from 0."""
    bias: float = 0.0
    """Added to the fork logit; finite."""
    select: Select = "by_rule"
    """Whether the fork copies survive: as the selection rule says, always or never."""
    row: int | None = None
    """The row of the batch; None: every row."""

    def __post_init__(self) -> None:
        _check(_is_whole(self.position) and self.position >= 0, "position", "a whole number, at least 0", self.position)
        finite = (
            isinstance(self.bias, int | float)
            and not isinstance(self.bias, bool)
            and abs(self.bias) <= sys.float_info.max  # math.isfinite raises for an int above it
        )
        _check(finite, "bias", "a finite number", self.bias)
        _check(self.select in get_args(Select), "select", f"one of {', '.join(get_args(Select))}", self.select)


@document_fields
@dataclass(frozen=True, kw_only=True, eq=False)
class StreamEdit:
    """Scale or replace streams of one token at one point.

    Raises `ValueError` if the token has no such stream, or another number of streams than `replace`.
    """

    layer: int
    """The layer, counted from 0."""
    position: int
    """The token, counted from 0."""
    stream: int | Literal["all", "forks"] = "all"
    """Which of the token's streams: an index from the left, -1 for the original, its forks, or all."""
    at: StreamPoint = "before_block"
    """Where in the layer."""
    scale: float = 1.0
    """Multiplies the streams' vectors."""
    replace: Tensor | None = None
    """(D) or (streams,D): takes the place of the vectors. None: they are only scaled."""
    row: int | None = None
    """The row of the batch; None: every row."""

    def __post_init__(self) -> None:
        _check(self.at in get_args(StreamPoint), "at", f"one of {', '.join(get_args(StreamPoint))}", self.at)
        _check(_is_whole(self.position) and self.position >= 0, "position", "a whole number, at least 0", self.position)
        _check(_is_whole(self.stream) or self.stream in ("all", "forks"), "stream",
                 "'all', 'forks' or an index", self.stream)  # fmt: skip
        _check(self.replace is None or self.scale == 1, "scale", "1 where `replace` is given", self.scale)

    def apply(self, value: Tensor, site: "Site") -> Tensor:
        """Return a copy of (B,S,D) with the edited streams."""
        edited = value.clone()
        for row in range(len(value)) if self.row is None else (self.row,):
            at = self._chosen(site.of_token(self.position, row), site)
            own = edited[row, at]
            edited[row, at] = own * self.scale if self.replace is None else self._replacement(own)
        return edited

    def _replacement(self, vectors: Tensor) -> Tensor:
        """Return what takes the place of `vectors` (streams,D): never one stream of several in the place of others."""
        assert self.replace is not None
        shapes = (tuple(vectors.shape[1:]), tuple(vectors.shape))
        wanted = f"{shapes[0]} or {shapes[1]}"
        _check(tuple(self.replace.shape) in shapes, "the shape of replace", wanted, tuple(self.replace.shape))
        return self.replace.to(vectors)

    def _chosen(self, own: slice, site: "Site") -> slice:
        count = own.stop - own.start
        if self.stream == "all":
            return own
        if self.stream == "forks":
            return slice(own.start, max(own.start, own.stop - 1))
        if not -count <= self.stream < count:
            raise ValueError(
                f"stream {self.stream} does not exist: token {self.position} has {count} at layer {site.layer}"
            )
        start = own.start + self.stream % count
        return slice(start, start + 1)


@dataclass(frozen=True)
class Site:
    """Where a hook is called."""

    layer: int
    """The layer, counted from 0."""
    point: Point
    """The hook point."""
    token_index: Tensor
    """(B,S) the token of each stream; `tokens` in padding."""
    tokens: int
    """T, the length of the longest row."""

    def of_token(self, token: int, row: int = 0) -> slice:
        """Return the streams of a token in a row of the batch; the last is its original."""
        return token_streams(self.token_index[row], token)


@document_fields
@dataclass(frozen=True, kw_only=True)
class Hook:
    """Read or replace the quantity at a point."""

    point: Point
    """The hook point; the module's docstring lists them."""
    call: Callable[[Tensor, Site], Tensor | None]
    """Called with the quantity. What it returns replaces the quantity; None changes nothing. It must not
    write to the tensor."""
    layer: int | None = None
    """The layer, counted from 0; None: every layer that has the point."""

    def __post_init__(self) -> None:
        _check(self.point in get_args(Point), "point", f"one of {', '.join(get_args(Point))}", self.point)


Intervention = ForkBias | StreamEdit | Hook


def record(into: dict[tuple[int, Point], Tensor], point: Point, layer: int | None = None) -> Hook:
    """Return a hook that stores the quantity in `into`, by layer and point, and changes nothing."""

    def store(value: Tensor, site: Site) -> None:
        into[site.layer, site.point] = value

    return Hook(point=point, call=store, layer=layer)


class Taps:
    """The interventions of one forward pass, applied in the order given; every `ForkBias` before hooks."""

    def __init__(self, interventions: Sequence[Intervention], config: ModelConfig, batch: int, tokens: int) -> None:
        """For `batch` rows of at most `tokens` tokens. Raises `ValueError` naming what is not in the model or batch."""
        self.biases = [each for each in interventions if isinstance(each, ForkBias)]
        self._edits = [each for each in interventions if not isinstance(each, ForkBias)]
        check_fork_biases(self.biases, config)
        for each in interventions:
            _check_place(each, config, batch, tokens)

    def at(self, layer: int, token_index: Tensor, tokens: int) -> Tap:
        """Return the tap of a layer whose streams belong to the tokens `token_index` (B,S)."""

        def tap(point: Point, value: Tensor) -> Tensor:
            if point == "fork_logits":
                value = shift_forks(value, self._biases_of(layer), token_index)
            for edit in self._edits:
                if _point(edit) == point and edit.layer in (None, layer):
                    value = _edited(edit, value, Site(layer, point, token_index, tokens))
            return value

        return tap

    def overrides(self, layer: int, token_index: Tensor) -> Tensor | None:
        """Return `fork_overrides` of a fork layer that streams (B,S) enter."""
        return fork_overrides(self._biases_of(layer), token_index)

    def attend(self, layer: int, attend: Attend, tap: Tap) -> Attend:
        """Return `attend` with the layer's hooks on the attention pattern."""
        hooked = any(_point(edit) == "attention_pattern" and edit.layer in (None, layer) for edit in self._edits)
        return _with_pattern(attend, tap) if hooked else attend

    def _biases_of(self, layer: int) -> list[ForkBias]:
        return [each for each in self.biases if each.layer == layer]


def within(interventions: Iterable[Intervention], tokens: int) -> list[Intervention]:
    """Return the interventions without those in tokens from number `tokens` on."""
    return [each for each in interventions if isinstance(each, Hook) or each.position < tokens]


def check_fork_biases(biases: Sequence[ForkBias], config: ModelConfig) -> None:
    """Raise `ValueError` naming a layer that does not fork, or a token whose forks two biases of a layer change."""
    seen: dict[tuple[int, int], set[int | None]] = {}
    for each in biases:
        if each.layer not in config.fork_layers:
            layers = ", ".join(map(str, config.fork_layers)) or "none"
            raise ValueError(f"layer must be a fork layer of the model ({layers}), not {each.layer}")
        rows = seen.setdefault((each.layer, each.position), set())
        if each.row in rows or (rows and None in {each.row, *rows}):
            raise ValueError(f"layer {each.layer}, position {each.position} is there twice; give it one bias")
        rows.add(each.row)


def shift_forks(logits: Tensor, biases: Sequence[ForkBias], token_index: Tensor) -> Tensor:
    """Return fork and keep logits (B,S,2), the former shifted by the biases of one layer."""
    if not biases:
        return logits
    shift = _of_streams(biases, [each.bias for each in biases], token_index).to(logits.dtype)
    return torch.stack((logits[..., 0] + shift, logits[..., 1]), dim=-1)


def fork_overrides(biases: Sequence[ForkBias], token_index: Tensor) -> Tensor | None:
    """Return (B,2S) int8 what the biases of one layer decide: 1 survives, -1 does not, 0 as the rule says.

    None if they decide nothing.
    """
    deciding = [each for each in biases if each.select != "by_rule"]
    if not deciding:
        return None
    values = [1.0 if each.select == "always" else -1.0 for each in deciding]
    chosen = _of_streams(deciding, values, token_index).to(torch.int8)
    return torch.stack((chosen, torch.zeros_like(chosen)), dim=-1).flatten(1)  # a kept stream is left to the rule


def _of_streams(biases: Sequence[ForkBias], values: Sequence[float], token_index: Tensor) -> Tensor:
    """Return for each stream (B,S) the value of its token's bias, 0 without one; float64."""
    size = max(each.position for each in biases) + 2
    table = torch.zeros((len(token_index), size), dtype=torch.float64, device=token_index.device)  # its last column: 0
    for row in {each.row for each in biases}:
        own = [i for i, each in enumerate(biases) if each.row == row]
        positions = torch.tensor([biases[i].position for i in own], device=table.device)
        given = torch.tensor([values[i] for i in own], dtype=table.dtype, device=table.device)
        table[slice(None) if row is None else row, positions] = given
    return table.gather(1, token_index.clamp(max=size - 1))


def _with_pattern(attend: Attend, tap: Tap) -> Attend:
    """Return `attend` that shows its weights to hooks. Unless one replaces them, its result is that of `attend`."""

    def hooked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = attention_weights(q, k)
        replaced = tap("attention_pattern", weights)
        return attend(q, k, v) if replaced is weights else replaced.type_as(v) @ v

    return hooked


def _edited(edit: StreamEdit | Hook, value: Tensor, site: Site) -> Tensor:
    if isinstance(edit, StreamEdit):
        return edit.apply(value, site)
    found = edit.call(value, site)
    if found is None:
        return value
    if found.shape != value.shape:
        raise ValueError(
            f"the hook at {site.point} of layer {site.layer} must return shape {tuple(value.shape)},"
            f" not {tuple(found.shape)}"
        )
    return found


def _point(edit: StreamEdit | Hook) -> Point:
    return edit.at if isinstance(edit, StreamEdit) else edit.point


def _check_place(each: Intervention, config: ModelConfig, batch: int, tokens: int) -> None:
    layers = config.n_layer * config.loops
    if each.layer is not None:
        _check(_is_whole(each.layer) and 0 <= each.layer < layers, "layer", f"0 … {layers - 1}", each.layer)
    if not isinstance(each, Hook):
        _check(each.position < tokens, "position", f"below the {tokens} tokens", each.position)
        _check(each.row is None or (_is_whole(each.row) and 0 <= each.row < batch), "row", f"0 … {batch - 1}", each.row)
    if not isinstance(each, ForkBias) and each.layer is not None and _point(each) in _OF_FORKS:
        layers_that_fork = ", ".join(map(str, config.fork_layers)) or "none"
        _check(each.layer in config.fork_layers, "layer", f"one of the fork layers ({layers_that_fork})", each.layer)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(ok: bool, name: str, wanted: str, value: object) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, not {reprlib.repr(value)}")
