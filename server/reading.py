"""Read the files that an operator names."""

from pathlib import Path

_OPEN_FILES = ("/dev/fd/", "/proc/self/fd/")
"""The paths of a shell's <(command), a pipe that the command writes to."""


def read_settings_file(file: Path) -> str:
    """Return the text of `file`. Raises `OSError` if it cannot be read, or if reading it might never end."""
    if file.exists() and not file.is_file() and not str(file).startswith(_OPEN_FILES):
        raise OSError(f"{file} is not a regular file")
    return file.read_text(encoding="utf-8")
