"""Read and write a model's tensors: safetensors, in one file or in shards with an index in Hugging Face's form."""

import json
import math
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thoughtbubbles.model.files.untrusted import read_json_object, require_regular

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4_000_000_000
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Header(NamedTuple):
    """The entry of one tensor in the header of a safetensors file."""

    name: str
    shape: list[int]
    dtype: str
    """As safetensors names it, such as BF16."""
    file: str

    @property
    def bytes(self) -> int:
        """Bytes of the tensor in its file, for a dtype that checkpoints store."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_weights(
    folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the tensors of `state` as `dtype`, in shards of at most `shard_bytes` bytes (or of one larger tensor).

    Raises `ValueError` for a dtype that checkpoints do not store, `OSError` if a file cannot be written.
    """
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
    shards = _split(state, dtype.itemsize, shard_bytes)
    files = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: state[name].detach().to("cpu", dtype).contiguous() for name in names}
        save_tensors(tensors, folder / file)
    if len(shards) > 1:
        total = sum(tensor.numel() for tensor in state.values()) * dtype.itemsize
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raise `OSError` naming it if that fails, for instance on a full disk."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors lets its owner alone read it, whatever the umask
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def read_weights(
    folder: Path, expected: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return exactly the tensors of `expected`, on `device` as `dtype`.

    Raises as `read_headers` does, before any tensor is read, and `ValueError` with the names of tensors and the number
    of their values that are NaN or infinite.
    """
    read_headers(folder, expected)
    weights = {name: tensor.to(dtype) for file in _files(folder) for name, tensor in _tensors(file, device)}
    _check_finite(weights, dtype)
    return weights


def read_headers(folder: Path, expected: Mapping[str, Tensor]) -> list[Header]:
    """Return the headers of exactly the tensors of `expected`, of which only names and shapes are used.

    Raises `ValueError` or `safetensors.SafetensorError` unless the files contain just these tensors, complete and all
    in one dtype.
    """
    found = [header for file in _files(folder) for header in _headers(file)]
    check_shapes({header.name: header.shape for header in found}, expected)
    _check_dtypes(found)
    return found


def check_shapes(found: Mapping[str, Sequence[int]], expected: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` unless the names and shapes of `found` are those of `expected`."""
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"tensors are missing: {_some(missing)}")
    if extra := [name for name in found if name not in expected]:
        raise ValueError(f"tensors do not belong to this model: {_some(extra)}")
    for name, shape in found.items():
        if list(shape) != list(expected[name].shape):
            raise ValueError(f"{name} has shape {list(shape)}, where the model has {list(expected[name].shape)}")


def _split(state: Mapping[str, Tensor], itemsize: int, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    remaining = shard_bytes
    for name, tensor in state.items():
        size = tensor.numel() * itemsize
        if size > remaining and shards[-1]:
            shards.append([])
            remaining = shard_bytes
        shards[-1].append(name)
        remaining -= size
    return shards


def _shard_name(i: int, count: int) -> str:
    return f"model-{i + 1:05}-of-{count:05}.safetensors"


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return [require_regular(folder / SINGLE)]
    if not (folder / INDEX).exists():
        raise ValueError(f"neither {SINGLE} nor {INDEX} exists")
    try:
        names = set(read_json_object(folder / INDEX)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{INDEX} is not an index of shards") from error
    count = len(names)
    if names != {_shard_name(i, count) for i in range(count)}:
        raise ValueError(f"{INDEX} does not name the shards 1 to {count}")
    return [require_regular(folder / name) for name in sorted(names)]


def _headers(file: Path) -> Iterator[Header]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (a safe_open is not a dict)
            header = tensors.get_slice(name)
            yield Header(name, header.get_shape(), header.get_dtype(), file.name)


def _tensors(file: Path, device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt", device=str(device)) as tensors:
        for name in tensors.keys():  # noqa: SIM118
            yield name, tensors.get_tensor(name)


def _check_dtypes(found: list[Header]) -> None:
    dtypes = sorted({header.dtype for header in found})
    if len(dtypes) != 1 or dtypes[0] not in DTYPES:
        raise ValueError(f"tensors are stored as {', '.join(dtypes)}, not all as one of {', '.join(DTYPES)}")


def _check_finite(weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    found = []
    for name, tensor in sorted(weights.items()):
        if not all(torch.isfinite(end) for end in tensor.aminmax()):  # allocates nothing; NaN becomes both ends
            found.append(f"{name} ({int((~tensor.isfinite()).sum())} of {tensor.numel()})")
    if found:
        raise ValueError(f"weights are, as {str(dtype).removeprefix('torch.')}, NaN or infinite: {_some(found)}")


def _some(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
