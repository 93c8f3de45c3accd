"""Say in a sentence what was found of a claim, for readers who do not know the tests."""

from collections.abc import Callable
from typing import NamedTuple

from experiments.runner.comparison import Comparison
from experiments.runner.intervals import LEVEL

PROVISIONAL = " Provisional: the planned claims that are not measured yet may change it."


class Measure(NamedTuple):
    """What is compared, lower being better."""

    name: str
    """For example `perplexity`."""
    amount: Callable[[float], str]
    """Writes a difference with its sign, without its unit."""
    unit: str
    same: str
    """How near `equal` is."""


def say(each: Comparison | None, first: str, second: str, measure: Measure, tests: int) -> str:
    """Return what was found of the claim that `first` are better than `second`; `tests` claims were tested at once."""
    if each is None or not each.apart:
        return f"Not measured yet: whether {first} are better than {second}."
    said = {
        "holds": f"{_upper(first)} are better than {second}{', by little' * each.small}",
        "is contradicted": f"{_upper(first)} are worse than {second}{', by little' * each.small}",
        "is equal to within 0.01": f"{_upper(first)} are as good as {second}, {measure.same}",
        "is open": f"It is open whether {first} are better than {second}",
    }[each.word]
    return f"**{said}**: {measured(each, measure)}{_why_open(each, tests)}.{PROVISIONAL * (not each.settled)}"


def measured(each: Comparison, measure: Measure) -> str:
    """Return the mean difference with its interval and how many pairs of runs agree."""
    mean = f"{measure.name} {measure.amount(each.mean)}{measure.unit}"
    if each.interval is None:
        return f"{mean} in one pair of runs"
    low, high = map(measure.amount, each.interval)
    return f"{mean} (95% interval {low} to {high}), lower in {each.below} pairs of runs"


def _why_open(each: Comparison, tests: int) -> str:
    if each.word != "is open":
        return ""
    if each.interval is None:
        return ", which cannot be told from chance"
    if each.interval[0] <= 0 <= each.interval[1]:
        return "; the interval includes 0"
    if each.p is not None and each.p < LEVEL:
        return "; with other documents it might be the other way round"
    return f"; the interval alone leaves out 0, but {tests} claims were tested at once, and some would do so by chance"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
