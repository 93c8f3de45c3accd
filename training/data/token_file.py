"""The format on disk: `train.bin` and `val.bin`, flat arrays of token ids, and `index.json`, what they hold.

Every document is preceded by the end-of-text id, as a served prompt is, so that the ids of two are never joined.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

TOKENIZER_FILE = "tokenizer.tiktoken"
INDEX_FILE = "index.json"


@dataclass(frozen=True, kw_only=True)
class Split:
    """One token file."""

    tokens: int
    """Ids in the file, an end-of-text for each document included."""
    bytes: int
    """UTF-8 bytes of the text, which bits per byte divides by."""
    documents: int
    """Documents in it."""
    sha256: str
    """Of the token file."""
    sources: dict[str, str]
    """The files it was read from, by name, and their sha256."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a prepared folder holds."""

    dtype: str
    """Of the ids: `uint16` where the vocabulary allows, else `uint32`."""
    vocab_size: int
    """Ids that the tokenizer has, end-of-text included."""
    tokenizer_sha256: str
    """Of `tokenizer.tiktoken` beside this index."""
    train: Split
    """`train.bin`."""
    val: Split
    """`val.bin`."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Load `folder/index.json`. `ValueError` when the folder was not prepared."""
        path = folder / INDEX_FILE
        if not path.is_file():
            raise ValueError(f"data: {folder} has no {INDEX_FILE}; make it with `thoughtbubbles prepare`")
        index = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**index, "train": Split(**index["train"]), "val": Split(**index["val"])})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


def read_tokens(folder: Path, split: str) -> NDArray[np.unsignedinteger[Any]]:
    """`train` or `val` of a prepared folder, memory-mapped: (tokens,) of the index's dtype.

    Raises `ValueError` when the file is not as long as the index says.
    """
    index = Index.read(folder)
    ids = np.memmap(folder / f"{split}.bin", dtype=index.dtype, mode="r")
    expected: Split = getattr(index, split)
    if len(ids) != expected.tokens:
        raise ValueError(f"data: {split}.bin holds {len(ids)} tokens where {INDEX_FILE} says {expected.tokens}")
    return ids
