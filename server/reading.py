"""Reading the files that an operator names."""

from pathlib import Path

_OPEN_FILES = ("/dev/fd/", "/proc/self/fd/")
"""What a shell's <(command) stands for: a pipe that somebody writes to."""


def read_settings_file(file: Path) -> str:
    """Return the text of `file`. `OSError` if it cannot be read, naming it also where to read it might never end."""
    if file.exists() and not file.is_file() and not str(file).startswith(_OPEN_FILES):
        raise OSError(f"{file} is not a regular file")
    return file.read_text(encoding="utf-8")
