"""Compare the study's arms as docs/experiments/tasks.md plans: the seeds that all have, pairs of errors, chance."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.runner.comparison import Comparison, Pair, Rules, judge
from experiments.runner.found import REGULAR, Found, planned, planned_claims
from experiments.runner.plan import Claim, Result, Study
from experiments.tasks.measure import GROUPS, OWN
from thoughtbubbles.training.synthetic import DEEP, WIDE, Task

RULES = Rules(least=0.02)
"""A share of wrong answers."""
CHANCE: Mapping[Task, float] = {"sums": 1 / 5, "lookups": 1 / 5, "permutations": 1 / 120, "hops": 1 / 17}
"""Of a guess at the answer."""
SURE = 1.645
"""Standard errors above chance within which 95% of guessers stay."""


class Analysed(NamedTuple):
    """What claims rest on."""

    seeds: list[int]
    planned: int
    """How many seeds are planned."""
    found: Found
    """The arms that have all these seeds, with these alone."""
    left_out: list[tuple[str, int]]
    """Arms and seeds that were measured and are in no claim."""


def analysed(study: Study, size: str, found: Found) -> Analysed:
    """Return the runs of the seeds that every arm of the size's first stage has, of all arms that have them too."""
    first = next(stage for stage in study.stages if stage.size == size)
    measured = [set(found[arm]) for arm in first.arms if arm in found]
    seeds = sorted(set.intersection(*measured)) if measured else []
    kept = {arm: {seed: of[seed] for seed in seeds} for arm, of in found.items() if seeds and of.keys() >= set(seeds)}
    left_out = [(arm, seed) for arm, of in found.items() for seed in of if seed not in kept.get(arm, {})]
    return Analysed(seeds, len({seed for _, seed in planned(study, size)}), kept, left_out)


def compare(study: Study, size: str, found: Found) -> list[Comparison]:
    """Return a comparison at a size for each of the study's claims."""
    pairs = [Pair(claim, differences(found, claim)) for claim in study.claims]
    return judge(pairs, RULES, planned_claims(study, size))


def differences(found: Found, claim: Claim) -> list[float]:
    """Return by seed how far the errors of `lower` are above those of `than`, where both were measured."""
    lower, than = found.get(claim.lower, {}), found.get(claim.than, {})
    ratios = [OWN, OWN] if claim.ratios is None else [f"{ratio:g}" for ratio in claim.ratios]
    values = [
        (lower[seed]["errors"][ratios[0]][claim.measure], than[seed]["errors"][ratios[1]][claim.measure])
        for seed in sorted(lower.keys() & than.keys())
    ]
    return [one - other for one, other in values if one is not None and other is not None]


def at_chance(seeds: Mapping[int, Result], n: int) -> list[Task]:
    """Return the wide and deep tasks that an arm answers no better than chance at n, on average over seeds."""
    return [task for task in (*WIDE, *DEEP) if (right := _accuracy(seeds, task, n)) and right[0] <= right[1]]


def not_learned(found: Found, claim: Claim) -> list[Task]:
    """Return the tasks of a claim that `regular` answers no better than chance at n = 1."""
    tasks = GROUPS[claim.measure.partition("-")[0]]
    return [task for task in at_chance(found.get(REGULAR, {}), 1) if task in tasks]


def answers_no_deep_task(found: Found) -> bool:
    """Return whether no arm answers deep tasks of n = 2 better than chance."""
    return bool(found) and all(set(DEEP) <= set(at_chance(seeds, 2)) for seeds in found.values())


def forks_at_answers(result: Result, tasks: Sequence[Task], of: range) -> float:
    """Return the mean number of forks of tokens that an answer is predicted from, each task and n alike."""
    rows = result["inside"]["answer_forks"]
    values: list[float] = [rows[task][n - 1] for task in tasks for n in of if rows[task][n - 1] is not None]
    return statistics.mean(values)


def _accuracy(seeds: Mapping[int, Result], task: Task, n: int) -> tuple[float, float] | None:
    """Return the mean accuracy, and the most that 95% of guessers have on as many questions."""
    right = [cell for result in seeds.values() if (cell := result["accuracy"][OWN][task][n - 1]) is not None]
    if not right:
        return None
    questions = next(iter(seeds.values()))["questions"][task][n - 1]
    chance = CHANCE[task]
    return statistics.mean(right), chance + SURE * (chance * (1 - chance) / questions) ** 0.5
