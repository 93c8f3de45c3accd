"""Selection of the survivors of a fork under `causal`, given the cached prefix (SPEC.md, "Selection rules").

Letters: R requests, U new tokens of one, S the new streams of all, C candidates of one request, P those of its prefix.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.cache.layout import Indices, Layout
from thoughtbubbles.engine.cache.pages import NO_CANDIDATE
from thoughtbubbles.model.selection import count_earlier, select_causal

Grid = NDArray[np.int32]
Keep = NDArray[np.bool_]


class SelectionFacts(NamedTuple):
    """The inputs of selection."""

    grid: Grid
    """(S,2) the candidates' scores on the grid, `NO_CANDIDATE` for forced ones."""
    layout: Layout
    """Layout of the S streams among R requests."""
    token: Indices
    """(S,) index of each stream's token among the new tokens of its request."""
    slots: Indices
    """(R,U) budget(t+1) - (t+1) at each new token t."""
    candidates: Indices
    """(R,) number of free candidates so far, the new ones included."""
    alive: Indices
    """(R,) how many of the earlier ones have survived."""

    @property
    def padded(self) -> Grid:
        """(R,C) the scores, padded with `NO_CANDIDATE`."""
        return self.layout.pad(self.grid, NO_CANDIDATE).reshape(len(self.slots), -1)


def select(facts: SelectionFacts, read_prior: Callable[[], Tensor | None]) -> Keep:
    """Return which free candidates survive (S,2).

    `read_prior` returns the grid scores (R,P) of all earlier candidates, `NO_CANDIDATE` for forced ones and padding. It
    is not called if no request ever had more candidates than may survive.
    """
    if facts.slots.shape[1] > 1:
        keep = _select_many(facts, read_prior())
    elif (facts.candidates <= facts.slots[:, 0]).all():
        return np.ones(facts.grid.shape, dtype=np.bool_)
    else:
        padded, prior = facts.padded, read_prior()
        earlier = 0 if prior is None else count_earlier(torch.from_numpy(padded), prior).numpy()
        keep = select_next(padded, earlier, facts.slots[:, 0], facts.alive)
    return facts.layout.pack(keep.reshape(len(keep), -1, 2))


def _select_many(facts: SelectionFacts, prior: Tensor | None) -> Keep:
    token = facts.layout.pad(facts.token, facts.slots.shape[1]).repeat(2, axis=1)
    grid, alive = facts.padded.astype(np.int64), torch.from_numpy(facts.alive)
    keep, _ = select_causal(
        torch.from_numpy(grid), torch.from_numpy(token), torch.from_numpy(facts.slots), prior, alive
    )
    kept: Keep = keep.numpy()
    return kept


def select_next(grid: Grid, earlier: Grid | int, slots: Indices, alive: Indices) -> Keep:
    """Return which free candidates (R,C) of one new token of each request survive `causal(r)`.

    `grid` (R,C) are the scores of the candidates on the grid, `NO_CANDIDATE` for forced ones and padding, and `earlier`
    (R,C) how many candidates of earlier tokens are not lower. `slots` (R,) is budget(t+1) - (t+1), `alive` (R,) how
    many earlier candidates have survived.
    """
    C = grid.shape[1]
    key = grid.astype(np.int64) * C + np.arange(C)[::-1]  # of equals the one further left is the higher
    siblings = (key[:, None, :] > key[:, :, None]).sum(2)
    passing = (siblings + earlier < slots[:, None]) & (grid != NO_CANDIDATE)  # rule (a)
    gained = np.minimum(passing.sum(1), slots - alive)  # rule (b)
    kept: Keep = passing & (siblings < gained[:, None])
    return kept
