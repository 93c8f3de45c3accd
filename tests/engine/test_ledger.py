"""Rows of the ledger: cut, pasted, and looked up many at once."""

import numpy as np

from thoughtbubbles.engine.cache.layout import Layout
from thoughtbubbles.engine.cache.ledger import Ledger


def filled() -> Ledger:
    """Of three rows the middle one: five tokens, in two segments."""
    ledger = Ledger.empty(3, 8, [2, 4])
    ledger.kappa[1], ledger.generation[1] = 64, 7
    for token, ends in enumerate([[1, 2], [2, 4], [3, 5], [4, 7], [5, 8]]):
        ledger.append(np.array([1]), [10 + token], np.array([ends], np.int32))
    ledger.pages[1] = 2, 3
    ledger.table[1, [0, 1, 2, 3, 4]] = 21, 20, 33, 31, 32
    return ledger


def test_a_step_of_several_rows_is_noted_in_each() -> None:
    ledger = filled()
    ledger.append(np.array([2, 1]), [8, 9], np.array([[1, 1], [6, 10]], np.int32))
    assert ledger.tokens.tolist() == [0, 6, 1]
    assert ledger.ids[1, :6].tolist() == [10, 11, 12, 13, 14, 9]
    assert ledger.ends[1, :, :6].tolist() == [[1, 2, 3, 4, 5, 6], [2, 4, 5, 7, 8, 10]]
    assert ledger.streams.tolist() == [[0, 0], [6, 10], [1, 1]]
    assert ledger.ids[2, 0] == 8


def test_what_is_cut_out_is_its_own_and_begins_another_row() -> None:
    ledger = filled()
    part = ledger.cut(1, 3, np.array([1, 2]))
    ledger.vacate(np.array([1]))
    ledger.ids[:], ledger.table[:] = 0, 0
    assert (part.tokens.tolist(), part.ids.tolist(), part.streams.tolist()) == ([3], [[10, 11, 12]], [[3, 5]])
    assert [part.pages_of(0, i).tolist() for i in range(2)] == [[21], [33, 31]]
    ledger.paste(2, part)
    assert (ledger.tokens[2], ledger.kappa[2], ledger.streams[2].tolist()) == (3, 64, [3, 5])
    assert ledger.ids[2, :3].tolist() == [10, 11, 12]
    assert ledger.ends[2, :, :3].tolist() == [[1, 2, 3], [2, 4, 5]]
    assert [ledger.pages_of(2, i).tolist() for i in range(2)] == [[21], [33, 31]]


def test_places_come_segment_by_segment_and_row_by_row() -> None:
    rows, since, until = np.array([2, 0]), np.array([[1, 0], [0, 3]]), np.array([[2, 2], [0, 4]])
    row, column, ends = filled().cells(rows, since, until)
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == [(2, 1), (2, 2), (2, 3), (0, 5)]
    assert ends == [1, 4]


def test_no_rows_have_no_places() -> None:
    none = np.zeros((0, 2), np.int64)
    row, column, ends = filled().cells(np.zeros(0, np.int64), none, none)
    assert (row.size, column.size, ends) == (0, 0, [0, 0])


def test_several_tokens_of_several_rows_are_noted_as_one_after_the_other() -> None:
    one, other = filled(), filled()
    rows, counts = np.array([2, 1, 0]), np.array([[1, 1, 1, 1, 1, 1], [1, 2, 2, 1, 2, 1]], np.int32)
    layout = Layout.of([2, 3, 1])
    one.write_ids(rows, layout, np.array([80, 81, 90, 91, 92, 70], np.int32))
    one.extend(rows, layout, counts)
    tokens = [(2, 80, [1, 1]), (2, 81, [2, 3]), (1, 90, [6, 10]), (1, 91, [7, 11]), (1, 92, [8, 13]), (0, 70, [1, 1])]
    for row, token, ends in tokens:
        other.append(np.array([row]), [token], np.array([ends], np.int32))
    assert one.tokens.tolist() == other.tokens.tolist() == [1, 8, 2]
    for name in ("ids", "ends", "streams"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
