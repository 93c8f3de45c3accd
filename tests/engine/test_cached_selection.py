"""What survives of one new token a request is what `select_causal` says, which walks over many."""

import numpy as np
import pytest
import torch

from thoughtbubbles.engine.cache.layout import Layout
from thoughtbubbles.engine.cache.pages import NO_CANDIDATE
from thoughtbubbles.engine.portable.selection import SelectionFacts, select, select_next
from thoughtbubbles.model.selection import NEVER, count_earlier, select_causal


@pytest.mark.sample(30)
@pytest.mark.parametrize("case", range(300))
def test_one_new_token_each(case: int) -> None:
    dice = np.random.default_rng(case)
    R, spread = int(dice.integers(1, 5)), int(dice.choice([2, 5, 1000]))  # few values, so that many tie
    counts = dice.integers(1, 5, R)
    layout, originals = Layout.of(counts), counts.cumsum() - 1
    grid = dice.integers(-spread, 1, (counts.sum(), 2)).astype(np.int32)
    grid[originals, 1] = NO_CANDIDATE
    prior = dice.integers(-spread, 1, (R, dice.integers(1, 12))).astype(np.int32)
    prior[dice.random(prior.shape) < 0.3] = NO_CANDIDATE
    slots = dice.integers(0, 12, R)
    alive = np.minimum(slots, dice.integers(0, 6, R))
    padded = layout.pad(grid, NO_CANDIDATE).reshape(R, -1)
    earlier = count_earlier(torch.from_numpy(padded), torch.from_numpy(prior)).numpy()
    told = select_next(padded, earlier, slots, alive)

    token = np.where(np.arange(padded.shape[1]) < 2 * counts[:, None], 0, 1)
    known = torch.from_numpy(prior).long().masked_fill(torch.from_numpy(prior) == NO_CANDIDATE, NEVER)
    keep, _ = select_causal(torch.from_numpy(padded).long(), torch.from_numpy(token), torch.from_numpy(slots[:, None]),
                            known, torch.from_numpy(alive))  # fmt: skip
    keep[torch.arange(R), torch.from_numpy(2 * counts - 1)] = False  # the forced, which it keeps
    assert told.tolist() == keep.tolist()


def test_where_all_candidates_fit_they_all_stay() -> None:
    """The shortcut that looks at no score says what looking at them says."""
    grid = np.array([[-5, -1], [-3, NO_CANDIDATE]], dtype=np.int32)
    prior = torch.full((1, 4), -2, dtype=torch.int32)

    def facts(candidates: int) -> SelectionFacts:
        one = np.array([0])
        return SelectionFacts(
            grid, Layout.of([2]), np.zeros(2, np.int64), np.array([[7]]), np.array([candidates]), one + 4
        )

    free = grid != NO_CANDIDATE
    assert (select(facts(7), lambda: prior) & free).tolist() == free.tolist()
    assert (select(facts(8), lambda: prior) & free).tolist() == free.tolist()
