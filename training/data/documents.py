"""Reading documents from files: JSON lines and parquet with a `text` field, and text files of one document each."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

_ROWS_AT_ONCE = 256


class Documents(Protocol):
    """Texts in an order that is the same whenever they are read."""

    @property
    def total(self) -> int | None:
        """How many they are, where that is known before reading them."""

    def read(self, first: int = 0) -> Iterator[str]:
        """The texts from document `first` (from 0) on. `ValueError` for what cannot be read."""

    def sources(self) -> dict[str, str]:
        """What is read, by name, and a hash of each that changes when it does."""


class FileDocuments:
    """The documents of some files. Raises `ValueError` naming one that is not there."""

    total: int | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{path} is not a file")
        self._paths = paths

    def read(self, first: int = 0) -> Iterator[str]:
        """As `Documents.read`; what comes before `first` is read and dropped."""
        return islice(read_documents(self._paths), first, None)

    def sources(self) -> dict[str, str]:
        """File names and the sha256 of their content."""
        return {path.name: sha256(path) for path in self._paths}


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """The texts of all documents in `paths`, in order.

    `.jsonl` and `.jsonl.gz` hold one a line, `.parquet` one a row, any other file is one.
    Raises `ValueError` naming the file, and the line, for what is not UTF-8, not JSON, not parquet, or has no `text`.
    """
    for path in paths:
        try:
            yield from _texts(path)
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: {error}") from error


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _texts(path: Path) -> Iterable[str]:
    if ".jsonl" in path.suffixes:
        return _json_lines(path)
    return _parquet_rows(path) if path.suffix == ".parquet" else [path.read_text(encoding="utf-8")]


def _json_lines(path: Path) -> Iterator[str]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _text_of(_parsed(line, f"{path}:{number}"), f"{path}:{number}")


def _parquet_rows(path: Path) -> Iterator[str]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - comes with the extra `datasets`
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ValueError(f"{path}: parquet needs the extra: pip install 'thoughtbubbles[datasets]'") from None
    try:
        file = parquet.ParquetFile(path)
        columns = ["text"] if "text" in file.schema_arrow.names else None
        rows = (row for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield _text_of(row, f"{path}, row {number}")
    except pa.ArrowException as error:
        raise ValueError(f"{path}: {error}") from error


def _parsed(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error


def _text_of(document: object, where: str) -> str:
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where}: a document needs a string field 'text'")
    return text
