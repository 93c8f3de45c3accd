"""A new stream sees what stands left of it and itself, whatever masks were made before."""

import random

import torch

from engine.hidden_keys import KEPT, HiddenKeys


def test_masks_hide_what_is_to_the_right() -> None:
    hidden, dice = HiddenKeys(torch.zeros(0)), random.Random(0)
    for _ in range(200):
        new = dice.randint(1, KEPT + 3)
        keys = new + dice.randint(0, 60)
        mask = hidden.of(new, keys)
        seen = torch.zeros(new, keys) if mask is None else mask
        wanted = torch.arange(keys) <= keys - new + torch.arange(new)[:, None]
        assert torch.equal(seen == 0, wanted)
        assert (seen[~wanted] == -torch.inf).all()
