"""Which tokens of a token file are only given: `train.given.bin`, a byte a token, where a set has questions.

1 says that a token is read and not learned. There is no such file where none is.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.training.data.documents import sha256


def given_path(folder: Path, part: str) -> Path:
    """Where a prepared folder tells it of `train` or `val`."""
    return folder / f"{part}.given.bin"


def write_given(folder: Path, part: str, given: NDArray[np.uint8], at: int) -> None:
    """Write (tokens,) from token `at` on; those before it of which nothing was written are to be learned."""
    path = given_path(folder, part)
    path.touch()
    os.truncate(path, at)
    with path.open("ab") as file:
        file.write(given.tobytes())
        file.flush()
        os.fsync(file.fileno())


def finish_given(folder: Path, part: str, tokens: int) -> str | None:
    """Bring the file to the `tokens` of its token file; its sha256. None where nothing is only given."""
    path = given_path(folder, part)
    if not path.exists():
        return None
    os.truncate(path, tokens)
    return sha256(path)


def read_given(folder: Path, part: str, tokens: int) -> NDArray[np.unsignedinteger[Any]]:
    """(tokens,), memory-mapped. `ValueError` where the folder does not tell, or of another number of tokens."""
    path = given_path(folder, part)
    if not path.is_file():
        raise ValueError(f"{folder} does not tell questions from answers; prepare a set that has both")
    size = path.stat().st_size
    if size != tokens:
        raise ValueError(f"{path} tells of {size} tokens where {part}.bin holds {tokens}")
    return np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, dtype=np.uint8)
