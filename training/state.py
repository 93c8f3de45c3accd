"""Save and load the state of a run, so that it resumes exactly, on any number of ranks: weights, moments and facts.

torch.distributed.checkpoint writes the state while training continues. Every rank writes its part into `step-N/`.
`.metadata` is written last, and only a folder that has it is complete. So a kill never pairs the weights of one step
with the moments of another; the previous folder is kept until the new one is complete.
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
"""The state apart from tensors: the step, the best loss, the settings. JSON-ready."""

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
        # Saving without a process group is intended; torch would warn every time.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

    def save(self, facts: Facts) -> None:
        """Start to write the state of step `facts["step"]`: copy it now, write it in the background.

        A complete state of that step is kept: it is the same, and must not be lost while another is written.
        """
        self.wait()
        path = self._folder / f"step-{facts['step']}"
        if self._ranks.any(path in _complete_states(self._folder)):
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
        """Wait until the state being written is complete, then remove older states.

        Raises `OSError` naming the folder if it could not be written; older states are then kept.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except (CheckpointException, Exception) as error:  # CheckpointException is not an Exception
            raise OSError(f"the state could not be written to {self._folder}: {reason(error)}") from error
        if self._ranks.first:
            for old in self._folder.glob("step-*"):
                if old != latest_state(self._folder):
                    _delete(old)

    def load(self) -> Facts:
        """Load the weights and moments of the latest state in place, and return its facts.

        Runs no code from the state. Raises `ValueError` if there is no state, or naming a damaged or missing file.
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
    """Return the latest complete state in `folder`. Raise `ValueError` if there is none."""
    complete = _complete_states(folder)
    if not complete:
        raise ValueError(f"resume: {folder} holds no state that was written to its end")
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")))


def has_state(folder: Path) -> bool:
    """Return whether `folder` has a complete state."""
    return bool(_complete_states(folder))


def read_facts(folder: Path) -> Facts:
    """Return the facts of the latest state in `folder`. Raise `ValueError` if there is none, or they are wrong."""
    path = latest_state(folder) / FACTS_FILE
    try:
        facts = read_json_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"resume: {error}") from error
    for name, kind in _KINDS.items():
        if name not in facts or not isinstance(facts[name], kind) or isinstance(facts[name], bool):
            raise ValueError(f"resume: {path} lacks {name}, or has it in another form than a run writes")
    return facts


def delete_states(folder: Path) -> None:
    """Delete every state in `folder` and the folder. A kill meanwhile leaves no state that counts as complete."""
    for path in folder.glob("step-*"):
        _delete(path)
    shutil.rmtree(folder, ignore_errors=True)


def _delete(path: Path) -> None:
    """Delete a state, first the file that makes it complete."""
    (path / INDEX).unlink(missing_ok=True)
    shutil.rmtree(path)


def _complete_states(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if (path / INDEX).is_file()]
