"""Everything that a run needs to go on exactly: weights, optimizer, random state, step (which decides the data order).

One file, written in one step, so that a kill can never pair the weights of one step with the optimizer of another.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from model.atomic import write_file

Facts = dict[str, Any]
"""What is no tensor: the step, the best loss, the settings. JSON."""


def save_state(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], facts: Facts) -> None:
    """Write the state to `path`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{name}": value for name, value in values.items()}
    tensors |= {f"random.{name}": value for name, value in _random_state().items()}
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    write_file(path, save(contiguous, metadata={"facts": json.dumps(facts)}))


def read_facts(path: Path) -> Facts:
    """The facts of a saved state. `ValueError` when there is none."""
    if not path.is_file():
        raise ValueError(f"resume: {path} does not exist")
    with safe_open(path, framework="pt") as file:
        facts: Facts = json.loads(file.metadata()["facts"])
    return facts


def load_state(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Put the saved weights, optimizer moments and random state back."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    model.load_state_dict(_under("model.", tensors))
    for number, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(f"optimizer.{number}.", tensors).items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    _set_random_state(_under("random.", tensors))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
