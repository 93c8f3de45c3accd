"""Select the candidates that survive a fork layer: the four rules of SPEC.md, "Selection rules".

Letters: B batch, C = 2S candidates in stream order, T tokens, P prior candidates of a cached prefix.
A candidate is forced (a token's original, kept), free (any other), or padding. Padding has `token_index == T` and is
never selected.
"""

import reprlib
from dataclasses import dataclass
from typing import Literal, Self, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.model.config import LIMITS, ModelConfig, SelectBy

Length = TypeVar("Length", int, Tensor, NDArray[np.int64])
Rule = Literal["blockwise", "dynamic", "fixed", "causal"]

GRID = 2**16
"""Scores are compared as the integers round(score · GRID), so that rounding noise does not decide."""

NEVER = torch.iinfo(torch.int64).min
"""A grid score below all others: marks padding among prior candidates."""

ALWAYS = 2**40
"""A grid score above all others: that of forks which an intervention forces."""

_FORCED = 2**62
_PAIRS_AT_ONCE = 2**23
_RANDOM_RANKS = 2**24
"""The number of values of torch's random float32."""


def budget(length: Length, kappa: Length | int, block_size: int) -> Length:
    """Return κ' = ceil(T · κ / L), the streams that `length` tokens may keep (paper §2.6), in integer arithmetic."""
    return (length * kappa + block_size - 1) // block_size


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A selection rule and its budget.

    Raises `ValueError` naming the setting for an unknown rule or a budget below one stream per token.
    """

    rule: Rule
    max_block_size: int
    """κ: streams for a block of `block_size` tokens."""
    block_size: int
    """L: tokens of a training block of the model."""
    noise: Tensor | None = None
    """() scale of the Gumbel noise that training adds to the compared scores, never to c. None: no noise."""
    by: SelectBy = "score"
    """What ranks the candidates: `ModelConfig.select_by`."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, not {self.rule!r}")
        if self.max_block_size < self.block_size:
            raise ValueError(f"ratio must be at least 1, not {self.max_block_size / self.block_size:g}")

    @classmethod
    def of(cls, config: ModelConfig, rule: Rule, ratio: float | None = None, noise: Tensor | None = None) -> Self:
        """Return the selection by `rule` at ratio r (None: the model's κ / L); κ = floor(r · L + 0.5).

        Raises `ValueError` for an unknown rule, and for a ratio below 1 or whose κ is above the limit of a model's.
        """
        kappa = config.max_block_size
        if ratio is not None:
            kappa = _kappa(ratio, config.block_size)
        return cls(rule=rule, max_block_size=kappa, block_size=config.block_size, noise=noise, by=config.select_by)

    def budget(self, length: Length) -> Length:
        """Return the streams that may leave a fork layer for a sequence of `length` tokens."""
        return budget(length, self.max_block_size, self.block_size)

    def capacity(self, tokens: int, streams: int) -> int:
        """Return the most streams that can leave a fork layer which `streams` streams of `tokens` tokens enter."""
        kappa = self.max_block_size if self.rule in ("blockwise", "fixed") else self.budget(tokens)
        return max(tokens, min(kappa, 2 * streams))


def _kappa(ratio: float, block_size: int) -> int:
    largest = LIMITS["max_block_size"] // block_size
    if not 1 <= ratio <= largest:
        raise ValueError(f"ratio must be from 1 to {largest}, not {reprlib.repr(ratio)}")
    return int(ratio * block_size + 0.5)


def on_grid(score: Tensor) -> Tensor:
    """Return round(score · 2^16) as int64, the value that is compared; same shape."""
    return torch.round(score.float() * GRID).to(torch.int64)


def forced_candidates(token_index: Tensor, tokens: int) -> Tensor:
    """Return the mask (B,C) of each token's last candidate (its original, kept), from `token_index` (B,C)."""
    following = torch.nn.functional.pad(token_index[:, 1:], (0, 1), value=-1)
    return (token_index != following) & (token_index < tokens)


def select(
    selection: Selection, score: Tensor, token_index: Tensor, tokens: int, overrides: Tensor | None = None
) -> Tensor:
    """Return the mask (B,C) of the candidates that survive in whole sequences.

    `score` (B,C) float32 and `token_index` (B,C) describe the candidates; `tokens` is the length of the longest row.
    `overrides` (B,C) int8 are decisions about fork copies (`ForkBias.select`): 1 always survives and takes a place of
    the budget, -1 never survives, 0 is left to the rule. None: all are.
    """
    grid = _ranks(selection, score)
    if selection.rule == "causal":
        lengths = torch.arange(1, tokens + 1, device=score.device)
        slots = (selection.budget(lengths) - lengths).expand(score.shape[0], tokens)
        return select_causal(grid, token_index, slots, overrides=overrides)[0]
    if selection.rule == "dynamic":
        lengths = forced_candidates(token_index, tokens).sum(1)
        return select_highest(grid, token_index, tokens, selection.budget(lengths), overrides)
    return select_highest(grid, token_index, tokens, selection.max_block_size, overrides)


def _ranks(selection: Selection, score: Tensor) -> Tensor:
    """Return the integers (B,C) that are compared, from scores (B,C): larger for a higher candidate."""
    if selection.by == "random":
        return (torch.rand_like(score) * _RANDOM_RANKS).to(torch.int64)
    if selection.by == "kept":
        return (torch.arange(score.shape[1], device=score.device) % 2).expand_as(score)
    return on_grid(score if selection.noise is None else score + selection.noise * _gumbel_like(score))


def _gumbel_like(score: Tensor) -> Tensor:
    exponential = torch.empty_like(score).exponential_()
    return -exponential.clamp(min=torch.finfo(score.dtype).tiny).log()  # a draw of 0 would give infinite noise


def select_highest(
    grid: Tensor, token_index: Tensor, tokens: int, kappa: int | Tensor, overrides: Tensor | None = None
) -> Tensor:
    """Return the survivors (B,C) of `blockwise(κ)` and `fixed(κ)`, and with a κ' for each row (B,) of `dynamic(r)`.

    These are the forced candidates and the highest free ones, max(T, min(κ, C)) in all, with T and C of each row: with
    `overrides` the number of forced ones for T, and of those that may survive for C.
    """
    present = token_index < tokens
    if overrides is not None:
        present = present & (overrides >= 0)
    if isinstance(kappa, int) and grid.shape[1] <= kappa:
        return present
    forced = forced_candidates(token_index, tokens)
    if overrides is not None:
        forced = forced | (present & (overrides > 0))
    survivors = torch.maximum(present.sum(1).clamp(max=kappa), forced.sum(1))
    key = _keys(grid).masked_fill(~present, NEVER) + forced * _FORCED
    threshold = key.sort(dim=1, descending=True).values.gather(1, survivors[:, None] - 1)
    return present & (key >= threshold)


def select_causal(
    grid: Tensor,
    token_index: Tensor,
    slots: Tensor,
    prior: Tensor | None = None,
    prior_alive: Tensor | None = None,
    *,
    overrides: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the survivors (B,C) of `causal(r)`, and `alive` (B,T), the free survivors up to each token.

    Runs without a loop over tokens, from the start of a sequence or after a cached prefix. `grid` and `token_index`
    (B,C) describe the candidates of T new tokens (numbered from 0); `slots` (B,T) is budget(t+1) - (t+1). For a prefix,
    `prior` (B,P) has the grid scores of all its free candidates, deleted ones included, padded with `NEVER`, and
    `prior_alive` (B,) the number of them that survived. `overrides` are as in `select`; in `prior`, candidates that
    always survive are `ALWAYS`, and those that never do `NEVER`.
    """
    tokens = slots.shape[1]
    free = (token_index < tokens) & ~forced_candidates(token_index, tokens)
    always = None
    if overrides is not None:
        free, always = free & (overrides >= 0), free & (overrides > 0)
        grid = grid.masked_fill(always, ALWAYS)
    earlier, siblings = _count_higher(grid, token_index, free)
    if prior is not None:  # ties go to the candidate further left: the prefix wins them
        earlier = earlier + count_earlier(grid, prior)
    own = token_index.clamp(max=tokens - 1)
    passing = free & (earlier < slots.gather(1, own))  # rule (a): a running top-k
    start = torch.zeros_like(slots[:, 0]) if prior_alive is None else prior_alive
    if always is None:
        passed = torch.zeros_like(slots).scatter_add(1, own, passing.to(slots.dtype)).cumsum(1)
        ceiling = torch.cummin(slots - passed, dim=1).values
        alive = passed + torch.minimum(start[:, None], ceiling)  # rule (b): within the budget at every length
    else:
        forced, passed = (
            torch.zeros_like(slots).scatter_add(1, own, each.to(slots.dtype)) for each in (always, passing & ~always)
        )
        alive = _walk(start, slots, forced, passed)
    gained = torch.diff(alive, dim=1, prepend=start[:, None])
    keep = free & (siblings < gained.gather(1, own))  # what always survives has no higher siblings
    return keep | forced_candidates(token_index, tokens), alive


def _walk(start: Tensor, slots: Tensor, forced: Tensor, passed: Tensor) -> Tensor:
    """Return `alive` (B,T) under rule (b), token by token, where `forced` (B,T) candidates survive in any case.

    `passed` (B,T) counts the others that pass rule (a). Forced forks may exceed the budget; then no others survive.
    """
    alive = []
    for t in range(slots.shape[1]):
        start = start + forced[:, t]
        start = torch.maximum(start, torch.minimum(start + passed[:, t], slots[:, t]))
        alive.append(start)
    return torch.stack(alive, dim=1)


def _keys(grid: Tensor) -> Tensor:
    """Return a distinct integer per candidate that orders them: by grid score, then by reversed index."""
    candidates = grid.shape[1]
    return grid * candidates + torch.arange(candidates - 1, -1, -1, device=grid.device)


def _count_higher(grid: Tensor, token_index: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Count for each candidate the higher free candidates of tokens up to its own, and of its own: (B,C) each."""
    batch, candidates = grid.shape
    key = _keys(grid).masked_fill(~free, NEVER)[:, None, :]
    token = token_index[:, None, :]
    rows = max(1, _PAIRS_AT_ONCE // max(1, batch * candidates))  # bounds the memory of a comparison
    earlier, siblings = [], []
    for i in range(0, candidates, rows):
        own = token_index[:, i : i + rows, None]
        higher = key > key[:, 0, i : i + rows, None]
        earlier.append((higher & (token <= own)).sum(2))
        siblings.append((higher & (token == own)).sum(2))
    return torch.cat(earlier, 1), torch.cat(siblings, 1)


def count_earlier(grid: Tensor, prior: Tensor) -> Tensor:
    """Return for each candidate of `grid` (B,C) how many candidates of `prior` (B,P) are not lower: (B,C) int32."""
    rows = max(1, _PAIRS_AT_ONCE // max(1, prior.numel()))
    return torch.cat([_count_not_lower(some, prior) for some in grid.split(rows, dim=1)], dim=1)


def _count_not_lower(grid: Tensor, prior: Tensor) -> Tensor:
    pairs = torch.empty(*grid.shape, prior.shape[1], dtype=torch.int32, device=grid.device)  # sums faster than bool
    return torch.ge(prior[:, None], grid[:, :, None], out=pairs).sum(2, dtype=torch.int32)
