"""The state of one sequence in the fork-state cache."""

from dataclasses import dataclass

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

    def last_ends(self, tokens: int) -> list[int]:
        """Return the streams after the last fork layer up to and including each of its last `tokens` tokens."""
        end = self.tokens
        ends: list[int] = self.ledger.ends[self.row, -1, end - tokens : end].tolist()
        return ends

    def streams(self, segment: int) -> int:
        """Return the number of its streams in a segment."""
        return int(self.ledger.streams[self.row, segment])
