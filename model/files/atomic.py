"""Write files and folders whole or not at all, even if the machine stops meanwhile.

Everything is written beside its destination, flushed to the disk, and renamed into place.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, replacing an existing file in one step. Raises `OSError` as `open` does."""
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _flush(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which becomes `path` when the block ends without an error.

    No portable call swaps two folders. The old folder is therefore kept, where `latest_folder` finds it, until the
    new one is at `path`.
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            _flush(file)
        _flush(partial)
        _move(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def latest_folder(path: Path) -> Path:
    """Return `path`, or the previous folder if the machine stopped in the middle of `new_folder`."""
    previous = _previous(path)
    return previous if previous.is_dir() and not path.exists() else path


def _move(partial: Path, path: Path) -> None:
    previous = _previous(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        path.rename(previous)
    partial.rename(path)
    _flush(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _partial(path: Path) -> Path:
    # Always the same name, so that the next attempt overwrites what an interrupted one left.
    return path.parent / f".{path.name}.partial"


def _previous(path: Path) -> Path:
    # Not `with_name`, which refuses the root folder; the reader of a checkpoint says what that lacks.
    return path.parent / f".{path.name}.previous"


def _flush(path: Path) -> None:
    """Wait until the file, or the folder's directory entry, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
