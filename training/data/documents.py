"""Read documents from files: JSON lines and parquet with `text` or `messages`, and text files of one document each."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from thoughtbubbles.model.extras import install_command
from thoughtbubbles.model.files.untrusted import require_regular
from thoughtbubbles.training.data.json_lines import is_json_lines, read_json_lines
from thoughtbubbles.training.data.rows import Document, conversation, require_characters
from thoughtbubbles.training.data.text_files import read_text

_ROWS_AT_ONCE = 256
_TABLES = (".json", ".csv", ".tsv")
"""Ends of names of files with several documents, in forms that are not read. As text each would be one document."""
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
"""Ends of names of compressed files, of which only JSON lines with the first are read."""


class Documents(Protocol):
    """Documents in a fixed order."""

    @property
    def total(self) -> int | None:
        """The number of documents, if known before reading them."""

    def read(self, first: int = 0) -> Iterator[Document]:
        """Yield the documents from number `first` (from 0) on. Raise `ValueError` if one cannot be read."""

    def sources(self) -> dict[str, str]:
        """Return the sources by name, each with a hash that changes when its content does."""


class FileDocuments:
    """The documents of several files. Raises `ValueError` naming one that does not exist or is not read."""

    total: int | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{path} is not a file")
            _require_readable(path)
        self._paths = paths

    def read(self, first: int = 0) -> Iterator[Document]:
        """As `Documents.read`; documents before `first` are read and discarded."""
        return islice(_read(self._paths), first, None)

    def sources(self) -> dict[str, str]:
        """Return file names, with folders if two are equal otherwise, and the sha256 of their content."""
        return {name: sha256(path) for name, path in zip(_names(self._paths), self._paths, strict=True)}


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the texts of all documents in `paths`, in order.

    JSON lines (`.jsonl`, `.ndjson`, also with `.gz`) have one document per line, `.parquet` one per row; any other file
    is one document, but for `.json`, `.csv`, `.tsv` and compressed ones, which are refused. A conversation in
    `messages` is written as text. Raises `ValueError` naming file and line if something is not UTF-8, JSON or parquet,
    or has neither `text` nor `messages`.
    """
    return (document.text for document in _read(paths))


def _read(paths: Iterable[Path]) -> Iterator[Document]:
    for path in paths:
        for document, where in _documents(path):
            yield require_characters(document, where)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as few as tell different files apart."""
    whole = [path.resolve().parts for path in paths]
    longest = max(map(len, whole), default=0)
    short = ([parts[-count:] for parts in whole] for count in range(1, longest + 1))
    distinct = next((names for names in short if len(set(names)) == len(set(whole))), whole)
    return ["/".join(parts) for parts in distinct]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _documents(path: Path) -> Iterator[tuple[Document, str]]:
    """Return each document of a file, and its location for messages."""
    _require_readable(path)
    if is_json_lines(path):
        return ((_document(row, where), where) for row, where in read_json_lines(path))
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else iter([(Document(read_text(path)), str(path))])


def _require_readable(path: Path) -> None:
    """Raise `ValueError` if the name of a file ends as one of `_TABLES`, compressed or not, or of `_COMPRESSED`."""
    name = path.name.lower()
    suffix = next(filter(name.removesuffix(".gz").endswith, _TABLES), None)
    if suffix is not None:
        raise ValueError(
            f"{path}: {suffix} is not read; give JSON lines (.jsonl) or parquet with a field `text`, or rename it to"
            " .txt if the file is one text"
        )
    packed = next(filter(name.endswith, _COMPRESSED), None)
    if packed is not None and not (packed == ".gz" and is_json_lines(path)):
        raise ValueError(f"{path}: {packed} is not read; decompress it, or give .jsonl.gz")


def _parquet_rows(path: Path) -> Iterator[tuple[Document, str]]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - comes with the extra `datasets`
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ValueError(f"{path}: parquet needs packages: {install_command('datasets')}") from None
    try:
        file = parquet.ParquetFile(require_regular(path))
        columns = [name for name in ("text", "messages") if name in file.schema_arrow.names] or None
        rows = (row for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            where = f"{path}, row {number}"
            yield _document(row, where), where
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _document(row: object, where: str) -> Document:
    found = row if isinstance(row, dict) else {}
    if isinstance(found.get("text"), str):
        return Document(found["text"])
    try:
        return conversation(found)
    except (KeyError, TypeError, AttributeError) as error:
        reason = "a document needs a string field 'text', or 'messages', a list of turns with 'role' and 'content'"
        raise ValueError(f"{where}: {reason}") from error
