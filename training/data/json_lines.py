"""Read JSON lines, compressed by gzip or not."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from thoughtbubbles.model.files.untrusted import parse_json, require_regular

BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""Some editors write it before the first line; concatenated files have it within."""


def is_json_lines(path: Path) -> bool:
    """Return whether the name of a file says that it has JSON lines, compressed or not, in any case of letters."""
    return not {".jsonl", ".ndjson"}.isdisjoint(map(str.lower, path.suffixes))


def read_json_lines(path: Path) -> Iterator[tuple[object, str]]:
    """Yield the value of each line that is not blank, and its location: file and line, from 1.

    Raises `OSError` if the file cannot be read, and `ValueError` naming file and line if it is not UTF-8, gzip or JSON.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(require_regular(path), "rb") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}:{number}"
                text = _decode(line, where).removeprefix(BYTE_ORDER_MARK)
                if text.strip():
                    yield parse_json(text, where), where
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error


def _decode(line: bytes, where: str) -> str:
    """Return the text of `line`. Raise `ValueError` starting with `where` if it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {error}") from error
