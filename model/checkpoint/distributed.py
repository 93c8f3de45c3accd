"""Read a folder of torch.distributed.checkpoint, from anybody, without running code from it.

Torch unpickles tensors with `weights_only`, but the index and other values without it. This module reads those safely.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from thoughtbubbles.model.files.untrusted import require_regular

INDEX = ".metadata"


def load_distributed(state: dict[str, Any], folder: Path, *, flatten: bool = True, no_dist: bool = False) -> None:
    """Load the entries of `state` from `folder`, in place, on all ranks together unless `no_dist`.

    `flatten` joins the names of nested dictionaries by dots. Raises `OSError` or `ValueError` naming the file if
    anything is missing, damaged or not plain data.
    """
    reader = SafeReader(folder)
    reader.read_metadata()  # if it fails inside `load`, torch logs its traceback and raises another error
    try:
        load(state, storage_reader=reader, planner=_SafePlanner(flatten_state_dict=flatten), no_dist=no_dist)
    except (CheckpointException, Exception) as error:  # CheckpointException is not an Exception
        raise ValueError(f"{folder} cannot be read: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return one line that says what failed; for a `CheckpointException`, the first failed rank's error."""
    if isinstance(error, CheckpointException):
        error, _ = next(iter(error.failures.values()))
    return str(error).strip().partition("\n")[0] or type(error).__name__


class SafeReader(FileSystemReader):
    """Torch's reader of a folder, limited to plain data in the index and to files of this folder."""

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:  # noqa: ANN401  (torch's signature)
        """Return the index. Raise `OSError` if it is missing, `ValueError` if it or a file that it names is damaged."""
        path = Path(self.path) / INDEX
        with require_regular(path).open("rb") as file:
            try:
                metadata = _IndexUnpickler(file).load()
            except Exception as error:  # a damaged pickle can raise anything
                raise ValueError(f"{path} is not the index of a distributed checkpoint: {reason(error)}") from error
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError(f"{path} is not the index of a distributed checkpoint")
        _check_files(path, metadata.storage_data)
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _SafePlanner(DefaultLoadPlanner):
    """Torch's plan, but values other than tensors, such as learning rates, are limited to plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)  # the base class unpickles without weights_only
        plain.seek(0)
        super().load_bytes(read_item, plain)


def _check_files(index: Path, stored: Mapping[Any, Any]) -> None:
    """Raise `ValueError` unless every item lies within a file beside the index."""
    ends: dict[str, int] = {}
    try:
        for where in stored.values():
            ends[where.relative_path] = max(ends.get(where.relative_path, 0), where.offset + where.length)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not the index of a distributed checkpoint: {reason(error)}") from error
    for name, end in ends.items():
        file = index.parent / name
        if Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not a file of this folder")
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if file.stat().st_size < end:
            raise ValueError(f"{file} is shorter than its index says")


class _IndexUnpickler(pickle.Unpickler):
    """An unpickler of the plain classes that an index consists of; any other class is an error."""

    ALLOWED = frozenset(
        {("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict")}
        | {("torch.distributed.checkpoint.filesystem", "_StorageInfo")}
        | {(module, "PosixPath") for module in ("pathlib", "pathlib._local")}
        | {
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        }
    )

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  (pickle's signature)
        if (module, name) in self.ALLOWED or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
