"""Which candidates survive a fork layer: the four rules of SPEC.md, "Selection rules".

Letters: B batch, C = 2S candidates in stream order, T tokens, P prior candidates of a cached prefix.
Padding candidates carry `token_index == T`; they are never free, never forced and never selected.
"""

from dataclasses import dataclass
from typing import Literal, Self, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.model.config import ModelConfig, SelectBy

Length = TypeVar("Length", int, Tensor, NDArray[np.int64])
Rule = Literal["blockwise", "dynamic", "fixed", "causal"]

GRID = 2**16
"""Scores are compared as the integer round(score · GRID), so that rounding noise never decides."""

NEVER = torch.iinfo(torch.int64).min
"""A grid score below every real one: marks padding among prior candidates."""

_FORCED = 2**62
_PAIRS_AT_ONCE = 2**23
_RANDOM_RANKS = 2**24
"""As many as a random float32 tells apart."""


def budget(length: Length, kappa: Length | int, block_size: int) -> Length:
    """κ' = ceil(T · κ / L), the streams that `length` tokens may keep (paper §2.6), in integers."""
    return (length * kappa + block_size - 1) // block_size


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A rule and the budget it works under.

    Raises `ValueError` naming the setting for an unknown rule or a budget below one stream a token.
    """

    rule: Rule
    """Who survives."""
    max_block_size: int
    """κ: streams for a block of `block_size` tokens."""
    block_size: int
    """L: the model's block, which the budget is stated for."""
    noise: Tensor | None = None
    """() the scale of Gumbel noise on the scores as they are compared, for training; c has none. None: no noise."""
    by: SelectBy = "score"
    """What candidates are ranked by: `ModelConfig.select_by`."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, not {self.rule!r}")
        if self.max_block_size < self.block_size:
            raise ValueError(f"ratio must be at least 1, not {self.max_block_size / self.block_size:g}")

    @classmethod
    def of(cls, config: ModelConfig, rule: Rule, ratio: float | None = None, noise: Tensor | None = None) -> Self:
        """The rule at ratio r (None: the model's own κ / L); κ = floor(r · L + 0.5)."""
        kappa = config.max_block_size
        if ratio is not None:
            kappa = _kappa(ratio, config.block_size)
        return cls(rule=rule, max_block_size=kappa, block_size=config.block_size, noise=noise, by=config.select_by)

    def budget(self, length: Length) -> Length:
        """Streams that may leave a fork layer when `length` tokens are present."""
        return budget(length, self.max_block_size, self.block_size)

    def capacity(self, tokens: int, streams: int) -> int:
        """The most streams that can leave a fork layer where `streams` of `tokens` tokens arrive."""
        kappa = self.max_block_size if self.rule in ("blockwise", "fixed") else self.budget(tokens)
        return max(tokens, min(kappa, 2 * streams))


def _kappa(ratio: float, block_size: int) -> int:
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"ratio must be at least 1, not {ratio:g}")
    return int(ratio * block_size + 0.5)


def on_grid(score: Tensor) -> Tensor:
    """round(score · 2^16) as int64: the value that comparisons use; shape kept."""
    return torch.round(score.float() * GRID).to(torch.int64)


def forced_candidates(token_index: Tensor, tokens: int) -> Tensor:
    """The last candidate of every token (its original, kept): (B,C) bool from (B,C) indices."""
    following = torch.nn.functional.pad(token_index[:, 1:], (0, 1), value=-1)
    return (token_index != following) & (token_index < tokens)


def select(selection: Selection, score: Tensor, token_index: Tensor, tokens: int) -> Tensor:
    """The surviving candidates of a whole sequence, (B,C) bool.

    `score` (B,C) float32 and `token_index` (B,C) describe the candidates of at most `tokens` tokens a row.
    """
    grid = _ranks(selection, score)
    if selection.rule == "causal":
        lengths = torch.arange(1, tokens + 1, device=score.device)
        slots = (selection.budget(lengths) - lengths).expand(score.shape[0], tokens)
        return select_causal(grid, token_index, slots)[0]
    if selection.rule == "dynamic":
        lengths = forced_candidates(token_index, tokens).sum(1)
        return select_highest(grid, token_index, tokens, selection.budget(lengths))
    return select_highest(grid, token_index, tokens, selection.max_block_size)


def _ranks(selection: Selection, score: Tensor) -> Tensor:
    """Return the integers that candidates are compared by: (B,C) int64 from scores (B,C), larger for the higher."""
    if selection.by == "random":
        return (torch.rand_like(score) * _RANDOM_RANKS).to(torch.int64)
    if selection.by == "kept":
        return (torch.arange(score.shape[1], device=score.device) % 2).expand_as(score)
    return on_grid(score if selection.noise is None else score + selection.noise * _gumbel_like(score))


def _gumbel_like(score: Tensor) -> Tensor:
    exponential = torch.empty_like(score).exponential_()
    return -exponential.clamp(min=torch.finfo(score.dtype).tiny).log()  # 0 may be drawn, and its noise is infinite


def select_highest(grid: Tensor, token_index: Tensor, tokens: int, kappa: int | Tensor) -> Tensor:
    """`blockwise(κ)`, `fixed(κ)` and, with a κ' for each row (B,), `dynamic(r)`: (B,C) bool.

    The forced and the highest others, max(T, min(κ, C)) in all, T and C being each row's own.
    """
    present = token_index < tokens
    if isinstance(kappa, int) and grid.shape[1] <= kappa:
        return present
    forced = forced_candidates(token_index, tokens)
    survivors = torch.maximum(present.sum(1).clamp(max=kappa), forced.sum(1))
    key = _keys(grid).masked_fill(~present, NEVER) + forced * _FORCED
    threshold = key.sort(dim=1, descending=True).values.gather(1, survivors[:, None] - 1)
    return present & (key >= threshold)


def select_causal(
    grid: Tensor, token_index: Tensor, slots: Tensor, prior: Tensor | None = None, prior_alive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`causal(r)` without a loop over tokens, from the start or on from a cached prefix.

    `grid` and `token_index` (B,C) are the candidates of T new tokens (indices from 0), `slots` (B,T) is
    budget(t+1) - (t+1) at each. A prefix is told by `prior` (B,P), the grid scores of all its non-forced
    candidates, losers too, padded with `NEVER`, and `prior_alive` (B,), how many of them survived.
    Returns the survivors (B,C) bool and `alive` (B,T), the non-forced survivors so far at each token.
    """
    tokens = slots.shape[1]
    free = (token_index < tokens) & ~forced_candidates(token_index, tokens)
    earlier, siblings = _count_higher(grid, token_index, free)
    if prior is not None:  # of equals the one further left is the higher, and all of the prefix is further left
        earlier = earlier + _count_prior(grid, prior)
    own = token_index.clamp(max=tokens - 1)
    passing = free & (earlier < slots.gather(1, own))  # rule (a): a running top-k
    start = torch.zeros_like(slots[:, 0]) if prior_alive is None else prior_alive
    passed = torch.zeros_like(slots).scatter_add(1, own, passing.to(slots.dtype)).cumsum(1)
    ceiling = torch.cummin(slots - passed, dim=1).values
    alive = passed + torch.minimum(start[:, None], ceiling)  # rule (b): within the budget at every length
    gained = torch.diff(alive, dim=1, prepend=start[:, None])
    keep = free & (siblings < gained.gather(1, own))
    return keep | forced_candidates(token_index, tokens), alive


def _keys(grid: Tensor) -> Tensor:
    """One integer a candidate, larger for the higher: the grid score, then the reversed index."""
    candidates = grid.shape[1]
    return grid * candidates + torch.arange(candidates - 1, -1, -1, device=grid.device)


def _count_higher(grid: Tensor, token_index: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """For each candidate, the higher free ones of tokens up to its own, and of its own token: (B,C) each."""
    batch, candidates = grid.shape
    key = _keys(grid).masked_fill(~free, NEVER)[:, None, :]
    token = token_index[:, None, :]
    rows = max(1, _PAIRS_AT_ONCE // max(1, batch * candidates))  # bounds the memory of the comparison
    earlier, siblings = [], []
    for i in range(0, candidates, rows):
        own = token_index[:, i : i + rows, None]
        higher = key > key[:, 0, i : i + rows, None]
        earlier.append((higher & (token <= own)).sum(2))
        siblings.append((higher & (token == own)).sum(2))
    return torch.cat(earlier, 1), torch.cat(siblings, 1)


def _count_prior(grid: Tensor, prior: Tensor) -> Tensor:
    """For each candidate (B,C), the prior candidates (B,P) that are not lower."""
    rows = max(1, _PAIRS_AT_ONCE // max(1, prior.numel()))
    return torch.cat([(prior[:, None] >= some[:, :, None]).sum(2) for some in grid.split(rows, dim=1)], dim=1)
