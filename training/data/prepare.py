"""`prepare`: documents in, token files and their index out."""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model import Tokenizer
from training.data.documents import read_documents
from training.data.token_file import INDEX_FILE, TOKENIZER_FILE, Index, Split
from training.data.vocabulary import train_vocabulary

_DOCUMENTS_AT_ONCE = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `prepare`."""
    parser.add_argument("--train", nargs="+", type=Path, required=True, metavar="FILE",
                        help=".jsonl or .jsonl.gz with a `text` field, or text files of one document each")  # fmt: skip
    parser.add_argument("--val", nargs="+", type=Path, required=True, metavar="FILE", help="the same, held out")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.bin, val.bin and index.json")
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument("--vocab-size", type=int, help="train a byte-level BPE of this many ids on --train")
    vocabulary.add_argument("--tokenizer", help="use this one: a .tiktoken file, or a name that tiktoken knows")


def run(args: argparse.Namespace) -> int:
    """Prepare as asked; 0."""
    index = prepare(args.train, args.val, args.out, args.tokenizer or args.vocab_size)
    print(json.dumps(index.to_dict(), indent=1))
    return 0


def prepare(train: Sequence[Path], val: Sequence[Path], out: Path, tokenizer: str | int) -> Index:
    """Write `out/{train.bin, val.bin, tokenizer.tiktoken, index.json}`, the index last; return the index.

    `tokenizer` is a path, a name, or the number of ids of a new one. Raises `ValueError` for input that cannot be used.
    """
    for path in (*train, *val):
        if not path.is_file():
            raise ValueError(f"{path} is not a file")
    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX_FILE).unlink(missing_ok=True)
    encoder = _tokenizer(tokenizer, train, out)
    dtype = "uint16" if encoder.vocab_size <= 2**16 else "uint32"
    index = Index(
        dtype=dtype,
        vocab_size=encoder.vocab_size,
        tokenizer_sha256=sha256(out / TOKENIZER_FILE),
        train=_write_split(encoder, train, out / "train.bin", dtype),
        val=_write_split(encoder, val, out / "val.bin", dtype),
    )
    (out / INDEX_FILE).write_text(json.dumps(index.to_dict(), indent=1) + "\n", encoding="utf-8")
    return index


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer(wanted: str | int, train: Sequence[Path], out: Path) -> Tokenizer:
    path = out / TOKENIZER_FILE
    if isinstance(wanted, int):
        train_vocabulary(tqdm(read_documents(train), desc="vocabulary", unit=" documents"), wanted, path)
        return Tokenizer.from_file(path)
    tokenizer = Tokenizer.from_name_or_file(wanted)
    tokenizer.save(path)
    return tokenizer


def _write_split(tokenizer: Tokenizer, sources: Sequence[Path], path: Path, dtype: str) -> Split:
    tokens = size = documents = 0
    with path.open("wb") as file, tqdm(desc=path.name, unit="B", unit_scale=True) as bar:
        for texts in _batches(read_documents(sources)):
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                file.write(np.array([tokenizer.end_of_text, *ids], dtype=dtype).tobytes())
                tokens += 1 + len(ids)
                size += len(text.encode())
            documents += len(texts)
            bar.update(size - bar.n)
    if not documents:
        raise ValueError(f"{', '.join(map(str, sources))}: no documents")
    return Split(tokens=tokens, bytes=size, documents=documents, sha256=sha256(path),
                 sources={source.name: sha256(source) for source in sources})  # fmt: skip


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        yield batch
