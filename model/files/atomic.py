"""Files and folders that appear whole or not at all, whenever the machine stops.

Everything is written beside its destination, flushed to the disk, and renamed into place.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, replacing what was there in one step. `OSError` as `open` has it."""
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
    """Give an empty folder to fill, which becomes `path` when the block ends without an error.

    A folder cannot be swapped for another in one portable step. What was at `path` is therefore kept
    as `latest_folder` finds it until the new one stands there.
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
    """Return `path`, or what stood there before when the machine stopped in the middle of `new_folder`."""
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
    # One name, so that what a stopped machine left is written over by the next attempt.
    return path.with_name(f".{path.name}.partial")


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _flush(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
