"""Return freed memory to the system: the C library keeps free memory that lies between used pieces."""

import ctypes
import time
from collections.abc import Callable

TRIM_SECONDS = 5.0
"""Time between trims: one takes milliseconds, and memory that it returned must be allocated again."""


class Trimmer:
    """Trims the heap of this process now and then. Belongs to one thread.

    A step frees its activations together, but longer-lived objects lie between them. glibc returns only the end of the
    heap, so resident memory would grow by what the busiest steps used, in ever new places.
    """

    def __init__(
        self, trim: Callable[[int], object] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`trim` replaces glibc's `malloc_trim`; with another C library there is none, and nothing is done."""
        self._trim = trim or getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._clock = clock
        self._last = clock()

    def trim(self) -> None:
        """Return all unused pages of the heap, unless that was done in the last `TRIM_SECONDS`."""
        now = self._clock()
        if self._trim is not None and now - self._last >= TRIM_SECONDS:
            self._trim(0)
            self._last = now
