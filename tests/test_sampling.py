"""The cases that run by default are the same on every machine and cover pairs of values."""

from itertools import product

from tests.sampling import sample

GRID = [frozenset({("a", i), ("b", j), ("c", k)}) for i, j, k in product(range(3), range(3), range(3))]


def test_nine_of_27_cover_nearly_all_pairs() -> None:
    chosen = sample(GRID, 9, "test")
    assert chosen == sample(GRID, 9, "test")
    assert len(set(chosen)) == 9
    pairs = {frozenset(pair) for case in map(GRID.__getitem__, chosen) for pair in product(case, case)}
    assert {frozenset({value}) for case in GRID for value in case} <= pairs
    assert len([pair for pair in pairs if len(pair) == 2]) >= 24  # of 27


def test_another_test_has_another_sample() -> None:
    cases = [frozenset({("case", i)}) for i in range(300)]
    samples = [sample(cases, 30, name) for name in "ab"]
    assert [len(each) for each in samples] == [30, 30]
    assert samples[0] != samples[1]


def test_all_where_there_are_no_more() -> None:
    assert sample(GRID, 100, "") == list(range(27))
