"""Windows of the token file: each pass is a shuffled tiling of its own, and a batch depends on its number alone."""

import numpy as np
import pytest
import torch

from thoughtbubbles.training.data.loader import WindowLoader

LENGTH = 5
IDS = np.arange(100, 163, dtype=np.uint16)  # 63 ids: 11 windows of 5 at every offset


def first_ids(loader: WindowLoader, windows: range) -> list[int]:
    return [int(loader.batch(number, 1)[0, 0]) for number in windows]


def test_a_window_is_a_run_of_the_file_with_the_target_of_its_last_input() -> None:
    batch = WindowLoader(IDS, LENGTH, seed=0).batch(3, 4)
    assert batch.shape == (4, LENGTH + 1)
    assert batch.dtype == torch.int64
    assert torch.equal(batch.diff(dim=1), torch.ones(4, LENGTH, dtype=torch.int64))


@pytest.mark.parametrize("number", range(20))
def test_a_pass_takes_every_window_at_its_offset_once(number: int) -> None:
    loader = WindowLoader(IDS, LENGTH, seed=7)
    count = loader.windows_per_pass
    starts = sorted(first_ids(loader, range(number * count, (number + 1) * count)))
    assert count == 11
    assert np.diff(starts).tolist() == [LENGTH] * (count - 1)
    assert starts[-1] + LENGTH <= IDS[-1]


def test_passes_differ_in_offset_and_order() -> None:
    loader = WindowLoader(IDS, LENGTH, seed=7)
    passes = [first_ids(loader, range(n * 11, (n + 1) * 11)) for n in range(20)]
    assert len({min(starts) for starts in passes}) == LENGTH  # every offset comes up
    assert len({tuple(np.argsort(starts)) for starts in passes}) == 20


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    asked_in_order = [WindowLoader(IDS, LENGTH, seed=1).batch(number, 4) for number in range(9)]
    loader = WindowLoader(IDS, LENGTH, seed=1)
    for number in (8, 0, 5, 2):
        assert torch.equal(loader.batch(number, 4), asked_in_order[number])
    assert not torch.equal(WindowLoader(IDS, LENGTH, seed=2).batch(0, 4), asked_in_order[0])


def test_too_few_tokens_are_refused() -> None:
    assert WindowLoader(IDS[: 2 * LENGTH], LENGTH, seed=0).windows_per_pass == 1
    with pytest.raises(ValueError, match="9 training tokens are too few for windows of block_size 5"):
        WindowLoader(IDS[: 2 * LENGTH - 1], LENGTH, seed=0)
