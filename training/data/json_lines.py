"""JSON lines, packed by gzip or not, as others write them."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from thoughtbubbles.model.files.untrusted import parse_json, require_regular

BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""Stands before the first line of files of some editors, and within those that were joined of such."""


def read_json_lines(path: Path) -> Iterator[tuple[object, str]]:
    """Yield what each line holds that is not empty, and where that is: file and line from 1.

    `OSError` when the file cannot be read; `ValueError` naming it, and the line, for what is not UTF-8, gzip or JSON.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(require_regular(path), "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(BYTE_ORDER_MARK)
                if text.strip():
                    where = f"{path}:{number}"
                    yield parse_json(text, where), where
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
