"""Read outcomes off a plan's table "What would count as what"."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.runner.comparison import Comparison, Key, Word
from experiments.runner.markdown import table

HOLDS: tuple[Word, ...] = ("holds",)
CONTRADICTED: tuple[Word, ...] = ("is contradicted",)
EQUAL: tuple[Word, ...] = ("is equal to within 0.01",)
OPEN: tuple[Word, ...] = ("is open",)
APPLIES = {True: "**yes**", False: "no", None: "not yet decided"}


class Outcome(NamedTuple):
    """A row of the plan's table."""

    outcome: str
    reading: str
    needs: Mapping[Key, Sequence[Word]]
    """Claims, and the words of each under which the row applies."""
    also: Callable[[], bool | None] = lambda: True
    """What else must be so; None where it is not measured."""


class Reading(NamedTuple):
    """A row, and whether it applies: None while something that it needs is not measured."""

    outcome: str
    reading: str
    applies: bool | None


def read_outcomes(rows: Iterable[Outcome], found: Mapping[Key, Comparison], complete: set[Key]) -> list[Reading]:
    """Return what each row says of the claims found; those that are not `complete` decide nothing."""
    return [Reading(row.outcome, row.reading, _applies(row, found, complete)) for row in rows]


def outcome_table(readings: Sequence[Reading]) -> str:
    """Return the plan's table with a column for what was found."""
    rows = [(each.outcome, each.reading, APPLIES[each.applies]) for each in readings]
    return table(("outcome", "reading", "found?"), rows)


def _applies(row: Outcome, found: Mapping[Key, Comparison], complete: set[Key]) -> bool | None:
    if not row.needs.keys() <= complete:
        return None
    return row.also() if all(found[key].word in words for key, words in row.needs.items()) else False
