"""Reading files that somebody else may have made: what they are not is refused by name, and nothing blocks."""

import json
from pathlib import Path
from typing import Any

MAX_DEPTH = 100
"""Objects and arrays within each other: what reads them may call itself as often, and what writes them."""


def require_regular(path: Path) -> Path:
    """Return `path`. `OSError` naming it if it is a FIFO, a device or a folder, whose reading may never end."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    return path


def parse_json(text: str, where: str) -> Any:  # noqa: ANN401
    """Return what `text` holds. `ValueError` that begins with `where` if it is not JSON or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where}: not JSON that can be read (it is nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that the file `path` holds.

    `OSError` if it cannot be read, `ValueError` if it holds anything else; both name it.
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
    """How many objects and arrays lie within each other."""
    depth, level = 0, [value]
    while level:
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [value for values in inner for value in values]
        depth += 1
    return depth
