"""The prompt mask of a token file: `train.given.bin`, a byte per token, for sets with prompts and answers.

1 marks a prompt token, which is an input but not a target. Sets without prompts have no such file.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.training.data.documents import sha256


def prompt_mask_path(folder: Path, part: str) -> Path:
    """Return the path of the prompt mask of `train` or `val` in a prepared folder."""
    return folder / f"{part}.given.bin"


def write_prompt_mask(folder: Path, part: str, mask: NDArray[np.uint8], at: int) -> None:
    """Write `mask` (tokens,) from token `at` on; earlier tokens that were never written become 0."""
    path = prompt_mask_path(folder, part)
    path.touch()
    os.truncate(path, at)
    with path.open("ab") as file:
        file.write(mask.tobytes())
        file.flush()
        os.fsync(file.fileno())


def finish_prompt_mask(folder: Path, part: str, tokens: int) -> str | None:
    """Extend the file to `tokens` tokens and return its SHA-256, or None if there are no prompts."""
    path = prompt_mask_path(folder, part)
    if not path.exists():
        return None
    os.truncate(path, tokens)
    return sha256(path)


def read_prompt_mask(folder: Path, part: str, tokens: int) -> NDArray[np.unsignedinteger[Any]]:
    """Return the mask (tokens,), memory-mapped. Raise `ValueError` if it is missing or has another length."""
    path = prompt_mask_path(folder, part)
    if not path.is_file():
        raise ValueError(f"{folder} does not tell questions from answers; prepare a set that has both")
    size = path.stat().st_size
    if size != tokens:
        raise ValueError(f"{path} has {size} tokens, but {part}.bin has {tokens}")
    return np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, dtype=np.uint8)
