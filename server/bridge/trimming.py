"""Return freed memory to the system: between pieces that are in use the C library would keep it for good."""

import ctypes
import time
from collections.abc import Callable

TRIM_SECONDS = 5.0
"""A trim takes some milliseconds, and what it returned must be had again where it is needed again."""


class Trimmer:
    """Trims this process's heap now and then. Belongs to one thread.

    Activations of a step are freed together, but what lives longer comes to lie between them. glibc returns only the
    heap's end, so resident memory grows by what the busiest steps took, in ever new places.
    """

    def __init__(
        self, trim: Callable[[int], object] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`trim` in place of the C library's, which only glibc has: elsewhere nothing is done."""
        self._trim = trim or getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._clock = clock
        self._last = clock()

    def trim(self) -> None:
        """Return all pages of the heap that hold nothing, unless that was done in the last `TRIM_SECONDS`."""
        now = self._clock()
        if self._trim is not None and now - self._last >= TRIM_SECONDS:
            self._trim(0)
            self._last = now
