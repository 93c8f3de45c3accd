"""When streams write: as soon as there is something, as long as writing leaves time for the rest."""

import asyncio
import time
from collections.abc import Iterable

from thoughtbubbles.server.bridge.generation import Generation

SHORT_SECONDS = 0.001
"""A turn of writing that takes no longer than this is never followed by a pause."""
PAUSE = 4
"""After a longer one streams pause for so many times as long, and then have the more to write at once."""
LONGEST_PAUSE_SECONDS = 0.05
"""But for no longer than this: a reader does not see it."""


class Pacing:
    """Wakes generations to be written, so that writing takes no more than a fifth of the event loop's time.

    A chunk costs the same for one token and for ten. And what the event loop takes, new requests wait for, and the
    engine's thread too, on which an engine steps or is heard: there is one interpreter lock.
    """

    def __init__(self) -> None:
        self._due: dict[Generation, None] = {}
        self._busy = False  # writing, or pausing after it

    def write(self, generations: Iterable[Generation]) -> None:
        """Wake these: now, or when the pause at hand is over."""
        self._due.update(dict.fromkeys(generations))
        if not self._busy:
            self._wake()

    def _wake(self) -> None:
        self._busy = True
        for generation in self._due:
            generation.wake()
        self._due.clear()
        # Called when all that were woken have written: their turns come first.
        asyncio.get_running_loop().call_soon(self._pause, time.monotonic())

    def _pause(self, began: float) -> None:
        took = time.monotonic() - began
        if took > SHORT_SECONDS:
            asyncio.get_running_loop().call_later(min(PAUSE * took, LONGEST_PAUSE_SECONDS), self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._busy = False
        if self._due:
            self._wake()
