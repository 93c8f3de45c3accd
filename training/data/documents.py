"""Reading documents: JSON lines with a `text` field, plain or gzipped, and text files of one document each."""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """The texts of all documents in `paths`, in order: `.jsonl` and `.jsonl.gz` hold one a line, any other file is one.

    Raises `ValueError` naming the file, and the line, for what is not UTF-8, not JSON, or has no `text`.
    """
    for path in paths:
        try:
            yield from _json_lines(path) if ".jsonl" in path.suffixes else [path.read_text(encoding="utf-8")]
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: {error}") from error


def _json_lines(path: Path) -> Iterator[str]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _text_of(line, f"{path}:{number}")


def _text_of(line: str, where: str) -> str:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where}: a document needs a string field 'text'")
    return text
