"""Read the files that an operator names."""

from pathlib import Path

_OPEN_FILES = ("/dev/fd/", "/proc/self/fd/")
"""The paths of a shell's <(command), a pipe that the command writes to."""


def read_settings_file(file: Path) -> str:
    """Return the text of `file`, without a byte order mark.

    Raises `OSError` if it cannot be read, or if reading it might never end, and `ValueError` if it is not UTF-8.
    """
    if file.exists() and not file.is_file() and not str(file).startswith(_OPEN_FILES):
        raise OSError(f"{file} is not a regular file")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from None
