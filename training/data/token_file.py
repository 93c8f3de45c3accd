"""The format on disk: `train.bin` and `val.bin`, flat arrays of token ids, and `index.json`, what they hold.

Every document is preceded by the end-of-text id, as a served prompt is, so that the ids of two are never joined.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model import Tokenizer
from training.data.documents import sha256
from training.data.progress import PROGRESS_FILE

TOKENIZER_FILE = "tokenizer.tiktoken"
INDEX_FILE = "index.json"
GPT2_IDS = 50257
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
"""Of GPT-2's ranks as `Tokenizer.save` writes them."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One token file."""

    tokens: int
    """Ids in the file, an end-of-text for each document included."""
    bytes: int
    """UTF-8 bytes of the text, which bits per byte divides by; 0 for a published file, which does not tell."""
    documents: int
    """Documents in it; 0 likewise."""
    sha256: str
    """Of the token file."""
    sources: dict[str, str]
    """What it was read from, by name: the sha256 of a file, the library's fingerprint of a published set."""
    given_sha256: str | None = None
    """Of the file beside it that tells questions from answers; None where there is none."""


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
        """Load `folder/index.json`, or tell of published files as they are. `ValueError` when it has neither."""
        path = folder / INDEX_FILE
        if not path.is_file() and _is_published(folder):
            return cls(**_published_index(folder))
        if not path.is_file():
            raise ValueError(f"data: {folder} has no {INDEX_FILE}; make it with `thoughtbubbles prepare`")
        index = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**index, "train": Split(**index["train"]), "val": Split(**index["val"])})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy, of what there is."""
        return asdict(self, dict_factory=lambda pairs: {name: value for name, value in pairs if value is not None})


def read_tokens(folder: Path, split: str) -> NDArray[np.unsignedinteger[Any]]:
    """`train` or `val` of a prepared folder, or of a published one, memory-mapped: (tokens,) of the index's dtype.

    Raises `ValueError` when the file is not as long as the index says.
    """
    index = Index.read(folder)
    ids = np.memmap(folder / f"{split}.bin", dtype=index.dtype, mode="r")
    expected: Split = getattr(index, split)
    if len(ids) != expected.tokens:
        raise ValueError(f"data: {split}.bin holds {len(ids)} tokens where {INDEX_FILE} says {expected.tokens}")
    return ids


def read_tokenizer(folder: Path) -> Tokenizer:
    """What the ids of a prepared folder mean; GPT-2's in a published one, as `Tokenizer.from_name` has it."""
    path = folder / TOKENIZER_FILE
    return Tokenizer.from_file(path) if path.is_file() else Tokenizer.from_name("gpt2")


def _is_published(folder: Path) -> bool:
    """Both token files, and no preparation that was stopped."""
    return all((folder / f"{s}.bin").is_file() for s in ("train", "val")) and not (folder / PROGRESS_FILE).exists()


@lru_cache
def _published_index(folder: Path) -> dict[str, Any]:
    """Of files that were published without one: nanoGPT's, uint16 ids of GPT-2's vocabulary, one after the other."""
    splits = {split: _published_split(folder / f"{split}.bin") for split in ("train", "val")}
    return {"dtype": "uint16", "vocab_size": GPT2_IDS, "tokenizer_sha256": GPT2_SHA256, **splits}


def _published_split(path: Path) -> Split:
    return Split(tokens=path.stat().st_size // 2, bytes=0, documents=0, sha256=sha256(path), sources={})
