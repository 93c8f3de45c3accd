"""The format on disk: `train.bin` and `val.bin`, flat arrays of token ids, and `index.json`, what they hold.

Every document is preceded by the end-of-text id, as a served prompt is, so that the ids of two are never joined.
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
from thoughtbubbles.training.data.given import given_path
from thoughtbubbles.training.data.progress import PROGRESS_FILE
from thoughtbubbles.training.data.verification import FileCheck

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
        path = require_regular(folder / INDEX_FILE)
        if not path.is_file() and _is_published(folder):
            return cls(**_published_index(folder))
        if not path.is_file():
            raise ValueError(f"data: {folder} has no {INDEX_FILE}; make it with `thoughtbubbles prepare`")
        index = read_json_object(path)
        try:
            found = cls(**{**index, "train": Split(**index["train"]), "val": Split(**index["val"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"data: {path} is not an index that `prepare` wrote: {error}") from error
        found._check(path)
        return found

    def _check(self, path: Path) -> None:
        """`ValueError` naming `path` and the field for a value that reading the files relies on and cannot use."""
        sizes = [self.vocab_size, self.train.tokens, self.val.tokens, self.train.bytes, self.val.bytes]
        if self.dtype not in {"uint16", "uint32"}:
            raise ValueError(f"data: {path}: dtype must be uint16 or uint32, not {self.dtype!r}")
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"data: {path}: vocab_size, tokens and bytes must be whole numbers, not {sizes}")
        if not all(isinstance(digest, str) for digest in (self.tokenizer_sha256, self.train.sha256, self.val.sha256)):
            raise ValueError(f"data: {path}: the sha256 of each file must be a string")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy, of what there is."""
        return asdict(self, dict_factory=lambda pairs: {name: value for name, value in pairs if value is not None})


def read_tokens(folder: Path, split: str) -> NDArray[np.unsignedinteger[Any]]:
    """`train` or `val` of a prepared folder, or of a published one, memory-mapped: (tokens,) of the index's dtype.

    Raises `ValueError` when the file is not as long as the index says; its content is `token_check`'s to verify.
    """
    index, path = Index.read(folder), require_regular(folder / f"{split}.bin")
    expected: Split = getattr(index, split)
    size, itemsize = path.stat().st_size, np.dtype(index.dtype).itemsize
    if size != expected.tokens * itemsize:
        told = f"where {INDEX_FILE} says {expected.tokens}"
        raise ValueError(f"data: {path} holds {size / itemsize:.12g} tokens {told}")
    return np.memmap(path, dtype=index.dtype, mode="r") if size else np.empty(0, dtype=index.dtype)


def token_check(folder: Path, split: str) -> FileCheck:
    """What `train.bin` or `val.bin` of a folder must hold."""
    index = Index.read(folder)
    expected: Split = getattr(index, split)
    known = expected.sha256 if (folder / INDEX_FILE).is_file() else None  # a published file's would be its own, again
    return FileCheck(path=folder / f"{split}.bin", sha256=known, dtype=index.dtype, vocab_size=index.vocab_size)


def given_check(folder: Path, split: str) -> FileCheck:
    """What the file that tells questions from answers must be, beside `train.bin` or `val.bin`."""
    expected: Split = getattr(Index.read(folder), split)
    return FileCheck(path=given_path(folder, split), sha256=expected.given_sha256)


def read_tokenizer(folder: Path) -> Tokenizer:
    """What the ids of a prepared folder mean; GPT-2's in a published one, as `Tokenizer.from_name` has it.

    `ValueError` when it is not the tokenizer that the ids were made with.
    """
    path, index = folder / TOKENIZER_FILE, Index.read(folder)
    if not path.is_file() and not (folder / INDEX_FILE).is_file():
        return Tokenizer.from_name("gpt2")
    FileCheck(path=path, sha256=index.tokenizer_sha256).run()
    tokenizer = Tokenizer.from_file(path)
    if tokenizer.vocab_size != index.vocab_size:
        told = f"where {INDEX_FILE} says {index.vocab_size}"
        raise ValueError(f"data: {path} has {tokenizer.vocab_size} ids {told}")
    return tokenizer


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
