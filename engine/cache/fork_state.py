"""What the fork-state cache holds of one sequence."""

from dataclasses import dataclass

from thoughtbubbles.engine.cache.ledger import Ledger


@dataclass(eq=False)
class ForkState:
    """A row of a ledger: the running requests' while its request runs, one of its own from then on."""

    ledger: Ledger
    row: int = 0
    spoilt: bool = False
    """Whether it has what no other request may start from."""

    @property
    def kappa(self) -> int:
        """κ of the budget that chose its streams; under another they would be others."""
        return int(self.ledger.kappa[self.row])

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return int(self.ledger.tokens[self.row])

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        ids: list[int] = self.ledger.ids[self.row, : self.tokens].tolist()
        return ids

    def pages(self, segment: int) -> list[int]:
        """Its pages in a segment, in stream order."""
        pages: list[int] = self.ledger.held(self.row, segment).tolist()
        return pages

    def streams(self, segment: int) -> int:
        """Live streams held in a segment."""
        return int(self.ledger.streams[self.row, segment])
