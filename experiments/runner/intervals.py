"""Intervals and tests of paired differences, and Holm's correction over several."""

import statistics
from collections.abc import Sequence

from scipy import stats

Interval = tuple[float, float]

LEVEL = 0.05
"""Of the corrected p-values, and of what lies outside the intervals."""


def t_interval(apart: Sequence[float]) -> Interval | None:
    """Return the 95% interval of the mean; None of fewer than two values."""
    if len(apart) < 2:
        return None
    half = float(stats.t.ppf(1 - LEVEL / 2, len(apart) - 1)) * statistics.stdev(apart) / len(apart) ** 0.5
    mean = statistics.mean(apart)
    return mean - half, mean + half


def t_test(apart: Sequence[float]) -> float | None:
    """Return the two-sided p-value of a mean of 0; None of fewer than two values, or of equal ones that are not 0."""
    if len(apart) < 2:
        return None
    error = statistics.stdev(apart) / len(apart) ** 0.5
    if error == 0:  # the t statistic is not defined
        return None if any(apart) else 1.0
    return 2 * float(stats.t.sf(abs(statistics.mean(apart)) / error, len(apart) - 1))


def holm(p: Sequence[float | None], number: int = 0) -> list[float | None]:
    """Return p-values corrected for their number by Holm; None stays, and does not count.

    Where `number` is larger, as many tests are counted, as if those that lack were the least clear.
    """
    order = sorted((each, i) for i, each in enumerate(p) if each is not None)
    corrected: list[float | None] = [None] * len(p)
    tests, highest = max(number, len(order)), 0.0
    for rank, (each, i) in enumerate(order):
        highest = max(highest, min(1.0, each * (tests - rank)))
        corrected[i] = highest
    return corrected
