"""Read files that may come from anybody: errors name the file, and no read blocks."""

import json
from pathlib import Path
from typing import Any

MAX_DEPTH = 100
"""Deepest nesting of objects and arrays: code that reads or writes them may recurse once per level."""


def explain(error: BaseException) -> str:
    """Return what went wrong, without the number of an `OSError` and with its file first."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror


def require_present(path: Path) -> Path:
    """Return `path`. Raise `OSError` naming it if there is nothing, or a symbolic link to nothing."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a symbolic link to {path.readlink()}, which does not exist")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return path


def require_regular(path: Path) -> Path:
    """Return `path`. Raise `OSError` naming it if it is absent, or a FIFO, device or folder, which may never end."""
    if not require_present(path).is_file():
        raise OSError(f"{path} is not a regular file")
    return path


def parse_json(text: str, where: str) -> Any:  # noqa: ANN401
    """Return the value of `text`. Raise `ValueError` starting with `where` if it is not JSON or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where}: not JSON that can be read (it is nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file `path`.

    Raises `OSError` if it cannot be read and `ValueError` if it is not a JSON object; both name the file.
    """
    try:
        text = require_regular(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    found = parse_json(text, str(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object")
    if _depth(found) > MAX_DEPTH:
        raise ValueError(f"{path}: not JSON that can be read (it is nested too deeply)")
    return found


def _depth(value: object) -> int:
    """Return how deeply objects and arrays are nested."""
    depth, level = 0, [value]
    while level:
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [value for values in inner for value in values]
        depth += 1
    return depth
