"""What is held of sequences, in columns: to note a step of all that run is a few operations, not a loop over them.

Letters: R rows, one a sequence; G segments; T tokens that a sequence may have; P pages that it may have in a segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thoughtbubbles.engine.cache.layout import Indices, Layout

Numbers = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Ledger:
    """Rows of running requests, which are their lanes on a device too; or a single one, of a request that is gone."""

    opening: Indices
    """(R,) the number of the state that has the row, which no other ever has; 0 where none has it."""
    kappa: Indices
    """(R,) κ of the budget that chose its streams."""
    tokens: Indices
    """(R,) tokens held."""
    streams: Indices
    """(R,G) live streams held."""
    pages: Indices
    """(R,G) pages held."""
    ids: Numbers
    """(R,T) the tokens."""
    ends: Numbers
    """(R,G,T) how many streams the tokens up to each token have: the streams' token index."""
    table: Numbers
    """(R,ΣP) the pages, in stream order, of one segment after the other."""
    begin: Indices
    """(G,) where in `table` each segment's pages begin."""

    @classmethod
    def empty(cls, rows: int, tokens: int, pages: Sequence[int]) -> Self:
        """Rows for sequences of at most so many tokens, and pages in each segment."""
        segments = len(pages)
        opening, kappa, held = np.zeros((3, rows), np.int64)
        streams, taken = np.zeros((2, rows, segments), np.int64)
        ids, ends = np.zeros((rows, tokens), np.int32), np.zeros((rows, segments, tokens), np.int32)
        table = np.zeros((rows, sum(pages)), np.int32)
        return cls(opening, kappa, held, streams, taken, ids, ends, table, np.cumsum([0, *pages[:-1]]))

    def note(self, rows: Indices, ids: ArrayLike, ends: Numbers) -> None:
        """Append a token (R,) to each of these rows, and the streams that it then has (R,G)."""
        at = self.tokens[rows]
        self.ids[rows, at] = ids
        self.ends[rows, :, at] = ends
        self.streams[rows] = ends
        self.tokens[rows] = at + 1

    def held(self, row: int, segment: int) -> Numbers:
        """The pages that a row has in a segment."""
        begin = self.begin[segment]
        return self.table[row, begin : begin + self.pages[row, segment]]

    def cut(self, row: int, tokens: int, pages: Indices) -> "Ledger":
        """A copy of the beginning of a row: so many tokens, some, and of each segment pages (G,)."""
        one = slice(row, row + 1)
        ends = self.ends[one, :, :tokens].copy()
        table = np.concatenate([self.held(row, i)[:n] for i, n in enumerate(pages.tolist())])
        return Ledger(
            np.zeros(1, np.int64), self.kappa[one].copy(), np.array([tokens]), ends[:, :, -1].astype(np.int64),
            pages[None].copy(), self.ids[one, :tokens].copy(), ends, table[None], pages.cumsum() - pages,
        )  # fmt: skip

    def paste(self, row: int, part: "Ledger") -> None:
        """Begin a row with what the only one of another ledger holds."""
        self.kappa[row], self.tokens[row] = part.kappa[0], part.tokens[0]
        self.streams[row], self.pages[row] = part.streams[0], part.pages[0]
        tokens = part.ids.shape[1]
        self.ids[row, :tokens], self.ends[row, :, :tokens] = part.ids[0], part.ends[0]
        self.table[self.places(np.array([row]), np.zeros_like(part.pages), part.pages)[:2]] = part.table[0]

    def vacate(self, rows: Indices) -> None:
        """Nobody has these rows any more."""
        for column in (self.opening, self.tokens, self.streams, self.pages):
            column[rows] = 0

    def places(self, rows: Indices, since: Indices, until: Indices) -> tuple[Indices, Indices, list[int]]:
        """Rows and columns of `table` that have the pages of these rows from `since` (R,G) on, before `until` (R,G).

        They come segment by segment; the last says where each segment's end.
        """
        counts = np.maximum(until - since, 0)
        layout = Layout.of(counts.T.ravel())
        columns = (since + self.begin).T.ravel()[layout.group] + layout.place
        return rows[layout.group % len(rows)], columns, counts.sum(0).cumsum().tolist()
