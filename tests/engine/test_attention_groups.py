"""Everyone attends once, with those alike, to what it may see."""

import random

import pytest
import torch

from thoughtbubbles.engine.cache.layout import Layout
from thoughtbubbles.engine.portable.attention_groups import FEW_STREAMS, KEYS_AT_ONCE, Masks, groups


@pytest.mark.sample(10)
@pytest.mark.parametrize("case", range(50))
def test_groups_share_out_all_rows_and_hide_what_is_to_come(case: int) -> None:
    dice = random.Random(case)
    R, most = dice.randint(1, 12), dice.choice([1, 9, 500])
    held = [dice.choice([0, dice.randint(0, most)]) for _ in range(R)]
    new = [dice.choice([1, 1, 2, 3, FEW_STREAMS + 1]) for _ in range(R)]
    told = groups(held, new, Masks(torch.zeros(0)))
    assert sorted(i for group in told for i in group.requests) == list(range(R))
    layout = Layout.of(new)
    for group in told:
        assert len(group.requests) == 1 or group.keys * len(group.requests) <= KEYS_AT_ONCE + (FEW_STREAMS + 1) * R
        rows = list(range(len(layout.group))) if group.rows is None else group.rows.tolist()
        assert [layout.group[row] for row in rows] == [i for i in group.requests for _ in range(group.new)]
        assert group.new == max(new[i] for i in group.requests)
        assert group.fresh == all(held[i] == 0 for i in group.requests)
        for place, i in enumerate(group.requests):
            own = layout.place[rows[place * group.new : (place + 1) * group.new]]
            assert own.tolist() == [min(n, new[i] - 1) for n in range(group.new)]
            assert new[i] == group.new or (not group.fresh and group.new <= FEW_STREAMS)
            assert held[i] + new[i] <= group.keys
            if not group.fresh:
                seen = torch.zeros(group.new, group.keys) if group.mask is None else group.mask[place, 0]
                wanted = torch.arange(group.keys) <= held[i] + torch.from_numpy(own)[:, None]
                assert torch.equal(seen == 0, wanted)
                assert (seen[~wanted] == -torch.inf).all()
