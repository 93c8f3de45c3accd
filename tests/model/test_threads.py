"""The number of torch's threads, which server, terminal and training set by one function."""

from collections.abc import Iterator

import pytest
import torch

from thoughtbubbles.model import set_threads, threads


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("own", "asked", "taken"), [(8, None, 7), (2, None, 1), (1, None, 1), (8, 3, 3), (1, 2, 2)])
def test_a_core_is_left_over_unless_told(
    own: int, asked: int | None, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TORCH_OWN", own)
    set_threads(asked)
    assert torch.get_num_threads() == taken


def test_none_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="threads must be from 1 to 1024, not 0"):
        set_threads(0)
