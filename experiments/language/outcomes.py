"""What docs/experiments/language.md says of each outcome, and the study's findings in sentences."""

import math
import statistics
from collections.abc import Mapping, Sequence

from experiments.language.compare import RULES, differences
from experiments.runner.comparison import Comparison, Key, by_key, count_tested
from experiments.runner.found import REGULAR, Found, planned
from experiments.runner.intervals import t_interval
from experiments.runner.outcomes import CONTRADICTED, EQUAL, HOLDS, OPEN, Outcome, Reading, read_outcomes
from experiments.runner.plan import Study
from experiments.runner.sentences import Measure, measured, say

PERPLEXITY = Measure("perplexity", lambda nats: f"{100 * math.expm1(nats):+.1f}", "%", "to within 1% of perplexity")
FORKS: Key = ("2l", "regular", "loss")
OVER_SCORES: Key = ("2l", "scores", "loss")
SCORES: Key = ("scores", "regular", "loss")
DEEPER: Key = ("2l", "deeper", "loss")
RANDOM: Key = ("2l", "random", "loss")
SAYINGS: Mapping[Key, tuple[str, str]] = {
    FORKS: ("models with forks", "regular ones"),
    OVER_SCORES: ("models with forks", "models that score forks and make none"),
    SCORES: ("models that score forks and make none", "regular ones"),
    DEEPER: ("models with forks", "regular ones with as many more layers as cost the same operations"),
    RANDOM: ("forks where the scores want them", "forks at random places"),
}
"""Of a claim, its two sides in words."""


def readings(study: Study, size: str, found: Found, comparisons: Sequence[Comparison]) -> list[Reading]:
    """Return the plan's table for a size."""
    forks = by_key(comparisons).get(FORKS)
    unsure = " (so the plan reads an open claim; no help is shown, nor that there is none)"
    rows = [
        Outcome("`2l` < `regular` holds, `2l` < `scores` holds", "forks help", {FORKS: HOLDS, OVER_SCORES: HOLDS}),
        Outcome("`2l` < `regular` holds, `2l` and `scores` equal or open",
                "what helps may be the scores; no claim for forks", {FORKS: HOLDS, OVER_SCORES: EQUAL + OPEN}),
        Outcome("`2l` < `regular` open or contradicted",
                f"forks do not help at this size and length{unsure if forks and forks.word == 'is open' else ''}",
                {FORKS: OPEN + CONTRADICTED}),
        Outcome("`2l` < `deeper` contradicted", "the operations are better spent on layers", {DEEPER: CONTRADICTED}),
        Outcome("`2l` and `random` equal", "which tokens fork does not matter; forks are width", {RANDOM: EQUAL}),
        Outcome("`scores-keep` equal to `regular` while `scores` is better",
                "the gain of scores is their low initial P", {SCORES: HOLDS},
                lambda: _equal(study, size, found, "scores-keep")),
    ]  # fmt: skip
    return read_outcomes(rows, by_key(comparisons), complete(study, size, comparisons))


def complete(study: Study, size: str, comparisons: Sequence[Comparison]) -> set[Key]:
    """Return the claims that have all planned seeds at a size, and whose verdict further claims cannot change."""
    return {
        key
        for key, each in by_key(comparisons).items()
        if each.settled and 1 < len(each.apart) >= _seeds(study, size, *key[:2])
    }


def sentences(comparisons: Sequence[Comparison], sayings: Mapping[Key, tuple[str, str]] = SAYINGS) -> list[str]:
    """Return what was found of the claims that matter most, in plain words; `sayings` are the two sides of each."""
    found, tests = by_key(comparisons), count_tested(comparisons)
    return [say(found.get(key), *sides, PERPLEXITY, tests) for key, sides in sayings.items()]


def caveats(found: Found) -> list[str]:
    """Return what limits a claim beside its test, in sentences."""
    apart = list(differences(found, "deeper", REGULAR).values())
    if not apart or statistics.mean(apart) <= 0:
        return []
    limit = (
        f"`deeper` is itself worse than `regular` ({PERPLEXITY.name} {PERPLEXITY.amount(statistics.mean(apart))}"
        f"{PERPLEXITY.unit}): at this length of training its layers do not pay, and an arm that is better than it is"
        " not yet shown to use operations well."
    )
    return [limit]


def finding(study: Study, size: str, comparisons: Sequence[Comparison], about: str) -> str | None:
    """Return the answer to "Do forks help?" in two sentences at most; None while a claim lacks seeds."""
    found, whole = by_key(comparisons), complete(study, size, comparisons)
    if not {FORKS, OVER_SCORES} <= whole:
        return None
    forks, scores = found[FORKS], found[OVER_SCORES]
    against = f"against regular models, {measured(forks, PERPLEXITY)}"
    beyond = f"against a control that scores forks and makes none, {measured(scores, PERPLEXITY)}"
    if forks.word != "holds":
        word = {"is contradicted": "Forks do harm", "is equal to within 0.01": "Forks make no difference that matters"}
        return f"**{word.get(forks.word, 'Forks were not shown to help')}** ({about}): {against}."
    if scores.word == "holds":
        return f"**Forks help{', by little' * (forks.small or scores.small)}** ({about}): {against}; {beyond}."
    return f"**Whether the forks themselves help is not shown** ({about}): {against}; but {beyond}."


def so_far(comparisons: Sequence[Comparison]) -> str:
    """Return what was measured of forks against regular models while that decides nothing."""
    forks = by_key(comparisons)[FORKS]
    return f"So far, against regular models, {measured(forks, PERPLEXITY)}." if forks.apart else ""


def _seeds(study: Study, size: str, lower: str, than: str) -> int:
    runs = planned(study, size)
    return len({seed for arm, seed in runs if arm == lower} & {seed for arm, seed in runs if arm == than})


def _equal(study: Study, size: str, found: Found, arm: str) -> bool | None:
    """Return whether an arm's interval against `regular` lies within what matters; None while it lacks seeds."""
    apart = list(differences(found, arm, REGULAR).values())
    interval = t_interval(apart)
    if interval is None or len(apart) < _seeds(study, size, arm, REGULAR):
        return None
    return max(map(abs, interval)) < RULES.least
