"""The ledger: tokens, streams and pages of cached sequences, in columns, so that a step updates all rows at once.

Letters: R rows, one a sequence; G segments; T most tokens of a sequence; P most pages of it in a segment; U new tokens.
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
    """One row for each running request, whose index is its lane on a device; or one row of a finished request."""

    generation: Indices
    """(R,) number of the state that uses the row, different for every state; 0 for a free row."""
    kappa: Indices
    """(R,) κ of the budget that its streams were selected under."""
    tokens: Indices
    """(R,) cached tokens."""
    streams: Indices
    """(R,G) cached streams."""
    pages: Indices
    """(R,G) allocated pages."""
    ids: Numbers
    """(R,T) the tokens."""
    ends: Numbers
    """(R,G,T) streams of all tokens up to and including each token."""
    table: Numbers
    """(R,ΣP) the pages, in stream order, of one segment after the other."""
    begin: Indices
    """(G,) first column of each segment in `table`."""

    @classmethod
    def empty(cls, rows: int, tokens: int, pages: Sequence[int]) -> Self:
        """Return free rows for sequences of at most `tokens` tokens, and at most `pages` pages in each segment."""
        segments = len(pages)
        generation, kappa, cached = np.zeros((3, rows), np.int64)
        streams, allocated = np.zeros((2, rows, segments), np.int64)
        ids, ends = np.zeros((rows, tokens), np.int32), np.zeros((rows, segments, tokens), np.int32)
        table = np.zeros((rows, sum(pages)), np.int32)
        return cls(generation, kappa, cached, streams, allocated, ids, ends, table, np.cumsum([0, *pages[:-1]]))

    def append(self, rows: Indices, ids: ArrayLike, ends: Numbers) -> None:
        """Append a token (R,) to each of these rows, whose streams up to it are `ends` (R,G)."""
        at = self.tokens[rows]
        self.ids[rows, at] = ids
        self.ends[rows, :, at] = ends
        self.streams[rows] = ends
        self.tokens[rows] = at + 1

    def write_ids(self, rows: Indices, layout: Layout, ids: Numbers) -> None:
        """Write the ids (U,) of the tokens of `layout` that are appended to these rows next."""
        at, ends = self.tokens[rows], layout.ends
        spans = zip(rows.tolist(), at.tolist(), layout.counts.tolist(), ends.tolist(), strict=True)
        for row, since, count, end in spans:  # a slice each takes less time than all tokens by index
            self.ids[row, since : since + count] = ids[end - count : end]

    def extend(self, rows: Indices, layout: Layout, counts: Numbers) -> None:
        """Append the tokens of `layout`, several to each of these rows, with streams `counts` (G,U).

        `write_ids` has written their ids.
        """
        first, last, at = layout.ends - layout.counts, layout.ends - 1, self.tokens[rows]
        ends = counts.cumsum(1, dtype=np.int32)
        before = ends.take(first, 1) - counts.take(first, 1)  # `take` needs less time than an index
        ends += (self.streams.take(rows, 0).T - before).astype(np.int32).repeat(layout.counts, 1)
        until = at + layout.counts
        spans = zip(rows.tolist(), at.tolist(), until.tolist(), first.tolist(), layout.ends.tolist(), strict=True)
        for row, since, to, begin, end in spans:  # as in `write_ids`
            self.ends[row, :, since:to] = ends[:, begin:end]
        self.streams[rows] = ends.take(last, 1).T
        self.tokens[rows] = until

    def pages_of(self, row: int, segment: int) -> Numbers:
        """Return the pages of a row in a segment, in stream order."""
        begin = self.begin[segment]
        return self.table[row, begin : begin + self.pages[row, segment]]

    def cut(self, row: int, tokens: int, pages: Indices) -> "Ledger":
        """Return a copy of a row's first `tokens` tokens, at least one, and first pages (G,) of each segment."""
        one = slice(row, row + 1)
        ends = self.ends[one, :, :tokens].copy()
        table = np.concatenate([self.pages_of(row, i)[:n] for i, n in enumerate(pages.tolist())])
        return Ledger(
            np.zeros(1, np.int64), self.kappa[one].copy(), np.array([tokens]), ends[:, :, -1].astype(np.int64),
            pages[None].copy(), self.ids[one, :tokens].copy(), ends, table[None], pages.cumsum() - pages,
        )  # fmt: skip

    def paste(self, row: int, part: "Ledger") -> None:
        """Fill a row from a ledger of one row."""
        self.kappa[row], self.tokens[row] = part.kappa[0], part.tokens[0]
        self.streams[row], self.pages[row] = part.streams[0], part.pages[0]
        tokens = part.ids.shape[1]
        self.ids[row, :tokens], self.ends[row, :, :tokens] = part.ids[0], part.ends[0]
        self.table[self.cells(np.array([row]), np.zeros_like(part.pages), part.pages)[:2]] = part.table[0]

    def vacate(self, rows: Indices) -> None:
        """Free these rows."""
        for column in (self.generation, self.tokens, self.streams, self.pages):
            column[rows] = 0

    def cells(self, rows: Indices, since: Indices, until: Indices) -> tuple[Indices, Indices, list[int]]:
        """Return rows and columns of `table` for pages number `since` (R,G) to `until` (R,G) of these rows.

        They are ordered by segment; the list has the end of each segment's part.
        """
        counts = np.maximum(until - since, 0).T
        sizes = counts.ravel()
        ends = sizes.cumsum()
        shift = (since + self.begin).T.ravel() - (ends - sizes)  # from the index of a cell to its column
        columns = np.arange(sizes.sum()) + shift.repeat(sizes)
        return np.concatenate([rows] * len(counts)).repeat(sizes), columns, counts.sum(1).cumsum().tolist()
