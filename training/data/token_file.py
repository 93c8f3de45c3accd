"""The format of a prepared folder: `train.bin` and `val.bin`, flat arrays of token ids, described by `index.json`.

The end-of-text id precedes every document, as it precedes a served prompt.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.model.files.untrusted import read_json_object, require_regular
from thoughtbubbles.training.data.documents import sha256
from thoughtbubbles.training.data.progress import PROGRESS_FILE
from thoughtbubbles.training.data.prompt_mask import prompt_mask_path
from thoughtbubbles.training.data.verification import FileCheck

TOKENIZER_FILE = "tokenizer.tiktoken"
INDEX_FILE = "index.json"
GPT2_IDS = 50257
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
"""SHA-256 of GPT-2's ranks as `Tokenizer.save` writes them."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The index entry of one token file."""

    tokens: int
    """Ids in the file, including an end-of-text for each document."""
    bytes: int
    """UTF-8 bytes of the text; 0 if unknown, for a published file."""
    documents: int
    """Number of documents; 0 if unknown, for a published file."""
    sha256: str
    """SHA-256 of the token file."""
    sources: dict[str, str]
    """Sources by name, each with the SHA-256 of a file or the library's fingerprint of a published set."""
    given_sha256: str | None = None
    """SHA-256 of the prompt mask; None without one."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The index of a prepared folder."""

    dtype: str
    """Type of the ids: `uint16` if the vocabulary allows, else `uint32`."""
    vocab_size: int
    """Number of ids of the tokenizer, including end-of-text."""
    tokenizer_sha256: str
    """SHA-256 of `tokenizer.tiktoken` in the same folder."""
    train: Split
    """`train.bin`."""
    val: Split
    """`val.bin`."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the index of `folder`, made up for published files. Raise `ValueError` if it has neither."""
        path = folder / INDEX_FILE
        if not path.exists():
            if is_published(folder):
                return cls(**_published_index(folder))
            raise ValueError(f"data: {folder} has no {INDEX_FILE}; make it with `thoughtbubbles prepare`")
        index = read_json_object(path)
        try:
            found = cls(**{**index, "train": Split(**index["train"]), "val": Split(**index["val"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"data: {path} is not an index that `prepare` wrote: {error}") from error
        found._check(path)
        return found

    def _check(self, path: Path) -> None:
        """Raise `ValueError` naming `path` and the field if a value is unusable for reading the files."""
        sizes = [self.vocab_size, self.train.tokens, self.val.tokens, self.train.bytes, self.val.bytes]
        if self.dtype not in {"uint16", "uint32"}:
            raise ValueError(f"data: {path}: dtype must be uint16 or uint32, not {self.dtype!r}")
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"data: {path}: vocab_size, tokens and bytes must be whole numbers, not {sizes}")
        if not all(isinstance(digest, str) for digest in (self.tokenizer_sha256, self.train.sha256, self.val.sha256)):
            raise ValueError(f"data: {path}: the sha256 of each file must be a string")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready copy without fields that are None."""
        return asdict(self, dict_factory=lambda pairs: {name: value for name, value in pairs if value is not None})


def read_tokens(folder: Path, split: str) -> NDArray[np.unsignedinteger[Any]]:
    """Return `train` or `val` of a prepared or published folder, memory-mapped: (tokens,) of the index's dtype.

    Raises `ValueError` if the file's length differs from the index. `token_check` verifies its content.
    """
    index, path = Index.read(folder), require_regular(folder / f"{split}.bin")
    expected: Split = getattr(index, split)
    size, itemsize = path.stat().st_size, np.dtype(index.dtype).itemsize
    if size != expected.tokens * itemsize:
        indexed = f"where {INDEX_FILE} says {expected.tokens}"
        raise ValueError(f"data: {path} holds {size / itemsize:.12g} tokens {indexed}")
    return np.memmap(path, dtype=index.dtype, mode="r") if size else np.empty(0, dtype=index.dtype)


def token_check(folder: Path, split: str) -> FileCheck:
    """Return the check of `train.bin` or `val.bin` of a folder."""
    index = Index.read(folder)
    expected: Split = getattr(index, split)
    known = expected.sha256 if (folder / INDEX_FILE).is_file() else None  # otherwise it is the hash of the same file
    return FileCheck(path=folder / f"{split}.bin", sha256=known, dtype=index.dtype, vocab_size=index.vocab_size)


def prompt_mask_check(folder: Path, split: str) -> FileCheck:
    """Return the check of the prompt mask of `train.bin` or `val.bin`."""
    expected: Split = getattr(Index.read(folder), split)
    return FileCheck(path=prompt_mask_path(folder, split), sha256=expected.given_sha256)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a prepared folder; GPT-2's, by `Tokenizer.from_name`, for a published folder.

    Raises `ValueError` if it is not the tokenizer that the index describes.
    """
    path, index = folder / TOKENIZER_FILE, Index.read(folder)
    if not path.is_file() and not (folder / INDEX_FILE).is_file():
        return Tokenizer.from_name("gpt2")
    FileCheck(path=path, sha256=index.tokenizer_sha256).run()
    tokenizer = Tokenizer.from_file(path)
    if tokenizer.vocab_size != index.vocab_size:
        indexed = f"where {INDEX_FILE} says {index.vocab_size}"
        raise ValueError(f"data: {path} has {tokenizer.vocab_size} ids {indexed}")
    return tokenizer


def is_published(folder: Path) -> bool:
    """Return whether `folder` has both token files and is not an interrupted preparation."""
    return all((folder / f"{s}.bin").is_file() for s in ("train", "val")) and not (folder / PROGRESS_FILE).exists()


@lru_cache
def _published_index(folder: Path) -> dict[str, Any]:
    """Return an index for files published without one: nanoGPT's format, uint16 ids of GPT-2's vocabulary."""
    splits = {split: _published_split(folder / f"{split}.bin") for split in ("train", "val")}
    return {"dtype": "uint16", "vocab_size": GPT2_IDS, "tokenizer_sha256": GPT2_SHA256, **splits}


def _published_split(path: Path) -> Split:
    return Split(tokens=path.stat().st_size // 2, bytes=0, documents=0, sha256=sha256(path), sources={})
