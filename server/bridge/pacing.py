"""When streams write: at once, as long as writing leaves time for the rest."""

import asyncio
import time
from collections.abc import Iterable

from thoughtbubbles.server.bridge.generation import Generation

SHORT_SECONDS = 0.001
"""Writing that takes at most this long, in all HTTP processes together, is followed by no pause."""
PAUSE = 9
"""The pause after longer writing, as a multiple of its time; events that come meanwhile are written together."""
LONGEST_PAUSE_SECONDS = 0.05
"""Longest pause: readers do not notice it."""


class Pacing:
    """Wakes the readers of generations, so that writing takes at most a tenth of the event loop's time.

    A chunk costs the same for one token and for ten. New requests wait for what the event loop does, and so does the
    engine's thread: both need the interpreter lock. Of several HTTP processes each writes to a part of the streams, so
    that none would ever pause, and all together would write many times as often as one.
    """

    def __init__(self, processes: int = 1) -> None:
        """`processes` is how many write, this one among them, about as long as it does."""
        self._processes = processes
        self._due: dict[Generation, None] = {}
        self._busy = False  # writing, or in the pause after it

    def write(self, generations: Iterable[Generation]) -> None:
        """Wake the readers of these now, or after the current pause."""
        self._due.update(dict.fromkeys(generations))
        if not self._busy:
            self._wake()

    def _wake(self) -> None:
        self._busy = True
        for generation in self._due:
            generation.wake()
        self._due.clear()
        # Called after all woken readers have written: the loop calls them first.
        asyncio.get_running_loop().call_soon(self._pause, time.monotonic())

    def _pause(self, began: float) -> None:
        took = time.monotonic() - began
        if took * self._processes > SHORT_SECONDS:
            asyncio.get_running_loop().call_later(min(PAUSE * took, LONGEST_PAUSE_SECONDS), self._resume)
        else:
            self._resume()

    def _resume(self) -> None:
        self._busy = False
        if self._due:
            self._wake()
