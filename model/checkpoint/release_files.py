"""Read tensors by name from files of others: safetensors, pickled state dicts, distributed checkpoints, Orbax trees.

Pickles are limited to tensors and plain data.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from thoughtbubbles.model.checkpoint.distributed import INDEX, SafeReader, load_distributed, reason
from thoughtbubbles.model.checkpoint.orbax import METADATA, OrbaxTree
from thoughtbubbles.model.files.untrusted import require_regular

WEIGHTS = ("model.safetensors", "weights.safetensors", "model.pt", "model.pth")
Read = Callable[[Iterable[str]], Mapping[str, Tensor]]


def read_tensors(
    path: Path, rename: Callable[[Iterable[str]], Mapping[str, str]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of `path`, on the CPU under new names, and the old names of the tensors left out.

    `path` is a weights file or a folder. The folder is a distributed checkpoint or an Orbax tree, contains one, or has
    one of the files `WEIGHTS`. `rename` gets all names (nested dictionaries joined by dots) and returns new names
    for the tensors to keep. The others, such as an optimizer's state, are not read if the format allows. Raises
    `OSError` for a missing file, `ValueError` naming a file with other contents.
    """
    names, read = _open(_find(path))
    renamed = rename(names)
    tensors = read(renamed)
    return {new: tensors[old] for old, new in renamed.items()}, sorted(set(names) - set(renamed))


def _open(path: Path) -> tuple[list[str], Read]:
    if path.name == INDEX:
        return _open_distributed(path.parent)
    if path.name == METADATA:
        tree = OrbaxTree(path.parent)
        return tree.names, tree.read
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_state_dict(path)
    return list(state), lambda _names: state


def has_orbax_tree(path: Path) -> bool:
    """Return whether `path` is an Orbax tree or a folder with one."""
    return any(file.is_file() for file in (path / METADATA, *path.glob(f"*/{METADATA}")))


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    indexes = [path / index for index in (INDEX, METADATA)] + [*path.glob(f"*/{INDEX}"), *path.glob(f"*/{METADATA}")]
    candidates = [*indexes, *(path / name for name in WEIGHTS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"{path} is not a distributed checkpoint or an Orbax tree and has none of {', '.join(WEIGHTS)}:"
        " name the weights file"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(require_regular(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    with require_regular(path).open("rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise anything
            raise ValueError(f"{path} is not a state dict that can be read without running code from it") from error
    return dict(_flat(content, ""))


def _flat(content: object, prefix: str) -> Iterable[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    if isinstance(content, Mapping):
        for name, inner in content.items():
            yield from _flat(inner, f"{prefix}{name}.")


def _open_distributed(folder: Path) -> tuple[list[str], Read]:
    stored = SafeReader(folder).read_metadata().state_dict_metadata
    tensors = {name: item for name, item in stored.items() if isinstance(item, TensorStorageMetadata)}
    return list(tensors), lambda names: _load(folder, {name: tensors[name] for name in names})


def _load(folder: Path, wanted: Mapping[str, TensorStorageMetadata]) -> dict[str, Tensor]:
    try:
        state = {name: torch.empty(item.size, dtype=item.properties.dtype) for name, item in wanted.items()}
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{folder} has a tensor that cannot be made: {reason(error)}") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_distributed(state, folder, flatten=False, no_dist=True)
    return state
