"""Judge claims that one arm is below another, by the rules that the plans of docs/experiments/ share."""

import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scipy import stats

from experiments.runner.intervals import LEVEL, Interval, holm, t_interval, t_test
from experiments.runner.plan import Claim

Key = tuple[str, str, str]
"""What names a claim: its two arms and its measure."""
Word = Literal["holds", "is contradicted", "is equal to within 0.01", "is open", "not measured"]


class Rules(NamedTuple):
    """What a plan says beside the tests."""

    least: float
    """The least difference that matters."""
    equality: bool = False
    """Whether a claim whose t interval lies within ±`least` is called equal."""


class Pair(NamedTuple):
    """What was measured of a claim."""

    claim: Claim
    apart: list[float]
    """The first value less the second, for each seed that both have."""
    documents: Interval | None = None
    """95% interval of the mean over documents, where a study resamples them."""


class Comparison(NamedTuple):
    """The verdict on a claim."""

    claim: Claim
    apart: list[float]
    """The first value less the second, by seed."""
    interval: Interval | None
    """95% interval of the mean over seeds, by Student's t; None with fewer than two seeds."""
    p: float | None
    """Two-sided, of the t-test; corrected by Holm over the claims that have one."""
    documents: Interval | None
    word: Word
    small: bool
    """Whether the mean is below the least difference that matters."""
    settled: bool
    """Whether the word would stay if all planned claims counted in Holm's correction, those that lack as unclear."""

    @property
    def mean(self) -> float:
        """The mean difference; `apart` must not be empty."""
        return statistics.mean(self.apart)

    @property
    def below(self) -> str:
        """How many seeds agree that the first is lower."""
        return f"{sum(each < 0 for each in self.apart)} of {len(self.apart)}"


def judge(pairs: Sequence[Pair], rules: Rules, number: int = 0) -> list[Comparison]:
    """Return the verdict on each pair; Holm's correction runs over all of them that have a test.

    `number` is that of the claims that are planned: a verdict that it would change is not settled.
    """
    p = [t_test(pair.apart) for pair in pairs]
    each = zip(pairs, holm(p), holm(p, number), strict=True)
    return [_judged(pair, measured, planned, rules) for pair, measured, planned in each]


def by_key(comparisons: Sequence[Comparison]) -> dict[Key, Comparison]:
    """Return comparisons by their arms and measure."""
    return {(each.claim.lower, each.claim.than, each.claim.measure): each for each in comparisons}


def count_tested(comparisons: Sequence[Comparison]) -> int:
    """Return how many claims have a test: those with two seeds or more."""
    return sum(each.p is not None for each in comparisons)


def errors_needed(seeds: int, tests: int) -> float:
    """Return how many standard errors the clearest of so many claims must be from 0 to pass Holm's correction."""
    return float(stats.t.ppf(1 - LEVEL / (2 * tests), seeds - 1))


def _judged(pair: Pair, p: float | None, planned: float | None, rules: Rules) -> Comparison:
    interval = t_interval(pair.apart)
    word = _word(interval, p, pair.documents, rules) if pair.apart else "not measured"
    small = bool(pair.apart) and abs(statistics.mean(pair.apart)) < rules.least
    settled = not pair.apart or word == _word(interval, planned, pair.documents, rules)
    return Comparison(pair.claim, pair.apart, interval, p, pair.documents, word, small, settled)


def _word(interval: Interval | None, p: float | None, documents: Interval | None, rules: Rules) -> Word:
    side = interval if documents is None else documents
    if p is not None and side is not None and p < LEVEL:
        if side[1] < 0:
            return "holds"
        if side[0] > 0:
            return "is contradicted"
    if rules.equality and interval is not None and max(map(abs, interval)) < rules.least:
        return "is equal to within 0.01"
    return "is open"
