"""Verify data against its index: hashes of files, and ids within the vocabulary."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.model.files.untrusted import require_regular

AT_ONCE_BYTES = 64 << 20
"""Files up to this size are verified before training starts, larger ones during training."""
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """The expected content of a file."""

    path: Path
    sha256: str | None
    """SHA-256 of the file; None if unknown."""
    dtype: str = "uint8"
    """Type of its ids, if it has any."""
    vocab_size: int | None = None
    """Ids are below this; None for a file without ids."""

    @property
    def large(self) -> bool:
        """Whether the check takes so long that training should not wait for it."""
        return self.path.stat().st_size > AT_ONCE_BYTES

    def run(self, stopping: threading.Event | None = None) -> None:
        """Read and check the file; stop if `stopping` is set. Raise `OSError` or `ValueError` naming file and fault."""
        digest, at = hashlib.sha256(), 0
        for block in self._blocks():
            if stopping is not None and stopping.is_set():
                return
            digest.update(block)
            ids = np.frombuffer(block, dtype=self.dtype)
            self.check_ids(ids, at)
            at += len(ids)
        if self.sha256 is not None and digest.hexdigest() != self.sha256:
            raise ValueError(f"data: {self.path} is not the file that was prepared: its sha256 is not the index's")

    def check_ids(self, ids: NDArray[Any], at: int) -> None:
        """Raise `ValueError` naming the position of the first id out of range; `ids` start at token `at`."""
        if self.vocab_size is None or not len(ids) or ids.max() < self.vocab_size:
            return
        first = int((ids >= self.vocab_size).argmax())
        raise ValueError(
            f"data: {self.path} has id {ids[first]} at token {at + first}, and the vocabulary {self.vocab_size} ids"
        )

    def _blocks(self) -> Iterator[bytes]:
        with require_regular(self.path).open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block


class Verification:
    """Runs checks of large files on a thread while a `with` block is open; the next block continues with the rest."""

    def __init__(self, checks: Sequence[FileCheck]) -> None:
        self.failure: Exception | None = None
        """The error of the first check that failed."""
        self._left = list(checks)

    def __enter__(self) -> Self:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="data verification", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def failed(self) -> bool:
        """Whether a check has failed so far."""
        return self.failure is not None

    def wait(self) -> None:
        """Wait until all checks have run."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._left and not self._stopping.is_set():
                self._left[0].run(self._stopping)
                if not self._stopping.is_set():
                    del self._left[0]
        except (OSError, ValueError) as failure:
            self.failure = failure
