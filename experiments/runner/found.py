"""Find a study's reported results by arm and seed, and name what was planned and has none."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.runner.plan import Result, Run, Study

Found = Mapping[str, Mapping[int, Result]]
"""Reported results by arm, in the order of the study, and seed; without those that diverged."""
REGULAR = "regular"
"""The arm that every other is compared with."""


class Gaps(NamedTuple):
    """Reported runs that a size lacks, as arm and seed."""

    not_run: list[tuple[str, int]]
    diverged: list[tuple[str, int]]


def by_arm(study: Study, size: str, results: Sequence[Result]) -> Found:
    """Return the reported results at a size under the study's present settings; the first line of a run counts."""
    found: dict[str, dict[int, Result]] = {arm: {} for arm in study.arms}
    for run, result in _reported(study, size, results):
        if result is not None and result["loss"] is not None:
            found[run.arm][run.seed] = result
    return {arm: dict(sorted(seeds.items())) for arm, seeds in found.items() if seeds}


def gaps(study: Study, size: str, results: Sequence[Result]) -> Gaps:
    """Return what is planned at a size and has no loss."""
    diverged = sorted(
        (run.arm, run.seed)
        for run, result in _reported(study, size, results)
        if result is not None and result["loss"] is None
    )
    made = {(arm, seed) for arm, seeds in by_arm(study, size, results).items() for seed in seeds}
    return Gaps(sorted(planned(study, size) - made - set(diverged)), diverged)


def planned(study: Study, size: str) -> set[tuple[str, int]]:
    """Return the arms and seeds that are to be reported at a size."""
    return {(arm, seed) for stage in study.stages if stage.size == size for arm in stage.arms for seed in stage.seeds}


def planned_claims(study: Study, size: str) -> int:
    """Return how many of the study's claims are of arms that are planned at a size."""
    arms = {arm for arm, _ in planned(study, size)}
    return sum({claim.lower, claim.than} <= arms for claim in study.claims)


def _reported(study: Study, size: str, results: Sequence[Result]) -> list[tuple[Run, Result | None]]:
    runs = [run for run in study.runs(results) if (run.size, run.kind) == (size, "final")]
    return [(run, run.find(results)) for run in runs]
