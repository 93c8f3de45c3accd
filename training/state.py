"""Everything that a run needs to go on exactly, on any number of ranks: weights, moments, and the facts beside them.

Written by torch.distributed.checkpoint while training goes on: every rank writes its part into `step-N/`, and the
folder counts once its `.metadata` is there, which comes last. So a kill can never pair the weights of one step with
the moments of another; until the new folder counts, the one before it is kept.
"""

import json
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save

from thoughtbubbles.model.checkpoint.distributed import INDEX, load_distributed, reason
from thoughtbubbles.model.files.untrusted import read_json_object
from thoughtbubbles.training.distributed import Ranks

Facts = dict[str, Any]
"""What is no tensor: the step, the best loss, the settings. JSON."""

FACTS_FILE = "facts.json"
_KINDS = {"model": dict, "training": dict, "data": dict, "step": int, "start": str | None,
          "best_val_loss": float | int | None}  # fmt: skip
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class RunState:
    """The saved states of one run, in a folder of their own."""

    def __init__(
        self, folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ranks: Ranks
    ) -> None:
        self._folder = folder
        self._model = model
        self._optimizers = list(optimizers)
        self._ranks = ranks
        self._writing: Future[Any] | None = None
        # One process is what we mean; the writer's thread says so too, every time.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

    def save(self, facts: Facts) -> None:
        """Begin to write the state of step `facts["step"]`: it is copied before this returns, and written after.

        A whole state of that step is kept: it is the same, and must not be lost while another is written.
        """
        self.wait()
        path = self._folder / f"step-{facts['step']}"
        if self._ranks.any(path in _whole_states(self._folder)):
            return
        if self._ranks.first:
            if path.exists():
                _delete(path)
            path.mkdir(parents=True)
            (path / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        writing = async_save(self._tensors(), checkpoint_id=path, process_group=self._ranks.saving)
        assert isinstance(writing, Future)
        self._writing = writing

    def wait(self) -> None:
        """Until what is being written is there; then the states before it go.

        `OSError` naming the folder when it could not be written; the states before it are then left.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except (CheckpointException, Exception) as error:  # the former is a BaseException alone
            raise OSError(f"the state could not be written to {self._folder}: {reason(error)}") from error
        if self._ranks.first:
            for old in self._folder.glob("step-*"):
                if old != latest_state(self._folder):
                    _delete(old)

    def load(self) -> Facts:
        """Put the latest state's weights and moments back; its facts.

        No code in a state is run. `ValueError` when there is none, and naming the file that is damaged or missing.
        """
        path = latest_state(self._folder)
        tensors = self._tensors()
        try:
            load_distributed(tensors, path)
        except (OSError, ValueError) as error:
            raise ValueError(f"resume: {error}") from error
        set_state_dict(
            self._model, self._optimizers, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizers"],
            options=_FLAT,
        )  # fmt: skip
        return read_facts(self._folder)

    def _tensors(self) -> dict[str, Any]:
        weights, moments = get_state_dict(self._model, self._optimizers, options=_FLAT)
        return {"model": weights, "optimizers": moments}


def latest_state(folder: Path) -> Path:
    """The last state in `folder` that was written to its end. `ValueError` when there is none."""
    whole = _whole_states(folder)
    if not whole:
        raise ValueError(f"resume: {folder} holds no state that was written to its end")
    return max(whole, key=lambda path: int(path.name.removeprefix("step-")))


def has_state(folder: Path) -> bool:
    """Whether a state in `folder` was written to its end."""
    return bool(_whole_states(folder))


def read_facts(folder: Path) -> Facts:
    """The facts of the latest state in `folder`. `ValueError` when there is none, or naming what is wrong with them."""
    path = latest_state(folder) / FACTS_FILE
    try:
        facts = read_json_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"resume: {error}") from error
    for name, kind in _KINDS.items():
        if name not in facts or not isinstance(facts[name], kind) or isinstance(facts[name], bool):
            raise ValueError(f"resume: {path} does not tell of {name}, or not as a run writes it")
    return facts


def delete_states(folder: Path) -> None:
    """Delete every state in `folder` and the folder itself. A state that a kill leaves half deleted does not count."""
    for path in folder.glob("step-*"):
        _delete(path)
    shutil.rmtree(folder, ignore_errors=True)


def _delete(path: Path) -> None:
    """Delete a state, first the file that makes it count."""
    (path / INDEX).unlink(missing_ok=True)
    shutil.rmtree(path)


def _whole_states(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if (path / INDEX).is_file()]
