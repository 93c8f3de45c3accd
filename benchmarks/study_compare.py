"""What a study's runs say beside one another: differences between equal seeds, and whether they are more than noise."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Literal, NamedTuple

from benchmarks.study_plan import Claim, Study
from benchmarks.study_results import Result, result_of

Found = Mapping[str, Mapping[int, Result]]
"""By arm, in the order of the study, and seed."""
Word = Literal["holds", "does not hold", "undecided", "not measured"]


class Verdict(NamedTuple):
    """Of a claim that one side is below another."""

    word: Word
    apart: list[float]
    """By how much the first side is above the second, for each seed that both have."""
    error: float | None
    """Standard error of the mean of these; None where no arm has two seeds."""


def by_arm(study: Study, results: Sequence[Result]) -> Found:
    """The results that have the study's own settings."""
    found: dict[str, dict[int, Result]] = {}
    for run in study.runs:
        if (result := result_of(study, run, results)) is not None:
            found.setdefault(run.arm, {})[run.seed] = result
    return found


def losses(found: Found, side: str) -> dict[int, float]:
    """By seed, of an arm, or of ARM:RULE where it was measured.

    The loss under a rule is that of the whole held-out text, and beside it what the rule adds to `blockwise` at the
    positions where both were measured: two models differ at a few positions by more than on the whole.
    """
    arm, _, rule = side.partition(":")
    told = found.get(arm, {})
    if not rule:
        return {seed: r["loss"] for seed, r in told.items()}
    return {
        seed: r["loss"] + r["rules"][rule] - r["rules"].get("blockwise", r["rules"][rule])
        for seed, r in told.items()
        if rule in r["rules"]
    }


def at_positions(found: Found, arm: str, rule: str) -> dict[int, float]:
    """By seed, the loss under a rule at the sampled positions alone."""
    return {seed: r["rules"][rule] for seed, r in found.get(arm, {}).items()}


def differences(lower: Mapping[int, float], than: Mapping[int, float]) -> list[float]:
    """By how much the first is above the second, for each seed that both have."""
    return [lower[seed] - than[seed] for seed in sorted(lower.keys() & than.keys())]


def deviation(found: Found, claim: Claim) -> float | None:
    """The standard deviation over seeds of a difference like that of `claim`, from all arms that have several.

    Three seeds of one pair tell it badly. So the squares of the differences from their mean are pooled over all pairs
    of arms; where the claim is about two rules of one model, over all arms.
    """
    (arm, _, rule), (other, _, other_rule) = (side.partition(":") for side in (claim.lower, claim.than))
    pairs = [(peer, peer) for peer in found] if arm == other else permutations(found, 2)
    groups = [differences(losses(found, f"{a}:{rule}"), losses(found, f"{b}:{other_rule}")) for a, b in pairs]
    squares = [(each - statistics.mean(group)) ** 2 for group in groups if len(group) > 1 for each in group]
    freedom = sum(len(group) - 1 for group in groups if group)
    return math.sqrt(sum(squares) / freedom) if freedom else None


def judge(found: Found, claim: Claim) -> Verdict:
    """Whether `claim` holds: every seed says so, and their mean is more than two standard errors from nothing.

    It does not hold where every seed says the contrary, and as clearly; else, and where no noise is known, it is open.
    """
    apart = differences(losses(found, claim.lower), losses(found, claim.than))
    if not apart:
        return Verdict("not measured", apart, None)
    noise = deviation(found, claim)
    error = None if noise is None else noise / math.sqrt(len(apart))
    clear = error is not None and abs(statistics.mean(apart)) > 2 * error
    if clear and all(each < 0 for each in apart):
        return Verdict("holds", apart, error)
    if clear and all(each > 0 for each in apart):
        return Verdict("does not hold", apart, error)
    return Verdict("undecided", apart, error)


def spread(values: Iterable[float], *, sign: bool = False) -> str:
    """Mean ± standard deviation; of one value the value alone, of none a dash."""
    many = list(values)
    if not many:
        return "–"
    mean = f"{statistics.mean(many):{'+' if sign else ''}.4f}"
    return f"{mean} ± {statistics.stdev(many):.4f}" if len(many) > 1 else mean
