"""Write numbers, tables and figures of a study's page as Markdown."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.runner.comparison import Comparison
from experiments.runner.intervals import Interval

NONE = "–"
"""A cell without a value."""


class Unit(NamedTuple):
    """How differences are written."""

    name: str
    scale: float
    digits: int

    def signed(self, value: float) -> str:
        """Return a difference with its sign."""
        return f"{self.scale * value:+.{self.digits}f}"

    def interval(self, interval: Interval | None) -> str:
        """Return both ends; a dash for None."""
        return NONE if interval is None else f"{self.signed(interval[0])} to {self.signed(interval[1])}"

    def spread(self, values: Iterable[float], *, sign: bool = False) -> str:
        """Return mean ± standard deviation; of one value the value alone, of none a dash."""
        many = [self.scale * value for value in values]
        if not many:
            return NONE
        mean = f"{statistics.mean(many):{'+' if sign else ''}.{self.digits}f}"
        return f"{mean} ± {statistics.stdev(many):.{self.digits}f}" if len(many) > 1 else mean


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def figure(name: str, shows: str) -> str:
    """Return a drawn figure with its caption."""
    return f"![{shows}](images/{name})\n\n*{shows}. Drawn by the last command above.*"


def verdict(each: Comparison) -> str:
    """Return what is said of a claim, with what limits it."""
    if len(each.apart) == 1:
        return f"{each.word}, one seed"
    decided = each.word in ("holds", "is contradicted")
    return f"{each.word}{', small' * (decided and each.small)}{', provisional' * (not each.settled)}"


def claims(comparisons: Sequence[Comparison], unit: Unit) -> str:
    """Return the table of claims."""
    resampled = any(each.documents for each in comparisons)
    heads = ["claim", "difference of", "mean", "t interval", *(["by documents"] if resampled else []), "p (Holm)",
             "seeds below 0", "the claim"]  # fmt: skip
    rows = [
        (
            each.claim.says, _sides(each), unit.signed(each.mean) if each.apart else NONE, unit.interval(each.interval),
            *([unit.interval(each.documents)] if resampled else []), _p(each.p),
            each.below if each.apart else NONE, verdict(each),
        )
        for each in comparisons
    ]  # fmt: skip
    return table(heads, rows)


def _p(p: float | None) -> str:
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _sides(each: Comparison) -> str:
    first, second = f"`{each.claim.lower}`", f"`{each.claim.than}`"
    if each.claim.ratios:
        first, second = (f"{side} at {at:g}" for side, at in zip((first, second), each.claim.ratios, strict=True))
    return f"{first} − {second}"
