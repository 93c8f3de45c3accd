"""A saved state counts only while it is whole, also while it is deleted or written again."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.state import RunState, delete_states, has_state, latest_state

FACTS = {"model": {}, "training": {}, "data": {}, "start": None, "best_val_loss": None}


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    model = nn.Linear(2, 2)
    return RunState(tmp_path, model, [torch.optim.AdamW(model.parameters())], Ranks(device=torch.device("cpu")))


def save(state: RunState, step: int) -> None:
    state.save({**FACTS, "step": step})
    state.wait()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def killed_in_rmtree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting a folder ends the process after the first file."""

    def rmtree(path: Path, *_arguments: object, **_more: object) -> None:
        next(Path(path).rglob("*.distcp")).unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", rmtree)


def test_a_state_that_is_half_deleted_does_not_count(state: RunState, tmp_path: Path, killed_in_rmtree: None) -> None:
    save(state, 3)
    with pytest.raises(Killed):
        delete_states(tmp_path)
    assert not has_state(tmp_path)


def test_an_old_state_that_is_half_deleted_does_not_count(
    state: RunState, tmp_path: Path, killed_in_rmtree: None
) -> None:
    save(state, 3)
    with pytest.raises(Killed):
        save(state, 5)
    (tmp_path / "step-5" / ".metadata").unlink()  # even if the new one was lost as well
    assert not has_state(tmp_path)


def test_a_state_is_not_written_again_at_its_own_step(state: RunState, tmp_path: Path, killed_in_rmtree: None) -> None:
    """A run that resumed and was stopped at once deleted its only state before it wrote the same once more."""
    save(state, 3)
    save(state, 3)
    assert latest_state(tmp_path).name == "step-3"
    assert state.load()["step"] == 3


def test_what_a_kill_left_of_a_state_is_replaced(state: RunState, tmp_path: Path) -> None:
    save(state, 3)
    (tmp_path / "step-3" / ".metadata").unlink()
    save(state, 3)
    assert state.load()["step"] == 3
