"""The state of one sequence in the fork-state cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thoughtbubbles.engine.cache.ledger import Ledger


@dataclass(eq=False)
class ForkState:
    """A row of a ledger: the cache's while its request runs, its own ledger of one row from then on."""

    ledger: Ledger
    row: int = 0
    spoilt: bool = False
    """Whether no other request may start from it, as its values are NaN or infinite."""

    @property
    def kappa(self) -> int:
        """κ of the budget that its streams were selected under."""
        return int(self.ledger.kappa[self.row])

    @property
    def tokens(self) -> int:
        """Cached tokens."""
        return int(self.ledger.tokens[self.row])

    @property
    def ids(self) -> list[int]:
        """Ids of the cached tokens."""
        ids: list[int] = self.ledger.ids[self.row, : self.tokens].tolist()
        return ids

    def pages(self, segment: int) -> list[int]:
        """Return its pages in a segment, in stream order."""
        pages: list[int] = self.ledger.pages_of(self.row, segment).tolist()
        return pages

    def streams(self, segment: int) -> int:
        """Return the number of its streams in a segment."""
        return int(self.ledger.streams[self.row, segment])


def streams_up_to(states: Sequence[ForkState], behind: Sequence[int]) -> list[int]:
    """Return the streams of running states after the last fork layer, up to so many tokens before each one's last."""
    if not states:
        return []
    ledger, rows = states[0].ledger, np.array([state.row for state in states])
    ends: list[int] = ledger.ends[rows, -1, ledger.tokens[rows] - 1 - behind].tolist()
    return ends
