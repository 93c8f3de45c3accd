"""Read text files of UTF-8, and name the line that is not."""

from pathlib import Path

from thoughtbubbles.model.files.untrusted import require_regular


def read_text(path: Path) -> str:
    r"""Return the text of a file, with `\n` for every line break, and without a byte order mark.

    Raises `OSError` if the file cannot be read, and `ValueError` naming file and line, from 1, if it is not UTF-8.
    """
    try:
        return require_regular(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: {error}") from error
