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
    return ".jsonl" in map(str.lower, path.suffixes)


def read_json_lines(path: Path) -> Iterator[tuple[object, str]]:
    """Yield the value of each line that is not blank, and its location: file and line, from 1.

    Raises `OSError` if the file cannot be read, and `ValueError` naming file and line if it is not UTF-8, gzip or JSON.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(require_regular(path), "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(BYTE_ORDER_MARK)
                if text.strip():
                    where = f"{path}:{number}"
                    yield parse_json(text, where), where
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
