"""A study and its results: what a part of the page is made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.language.measure import Evaluation as LanguageEvaluation
from experiments.runner.found import Found, by_arm, planned
from experiments.runner.plan import Result, Study, read_study
from experiments.tasks.measure import Evaluation as TasksEvaluation


class Part(NamedTuple):
    """A study and its results."""

    study: Study
    results: Sequence[Result]

    @property
    def sizes(self) -> Mapping[str, Found]:
        """The reported results of each size that has one."""
        return {size: found for size in self.study.sizes if (found := by_arm(self.study, size, self.results))}

    def made_of(self, size: str) -> tuple[int, int]:
        """Return how many reported runs of a size are made, and how many are planned."""
        return sum(map(len, by_arm(self.study, size, self.results).values())), len(planned(self.study, size))


def parts(language: Sequence[Result], tasks: Sequence[Result]) -> list[Part]:
    """Return both committed studies with their results."""
    folder = Path(__file__).parent
    return [
        Part(read_study(folder / "language" / "study.toml", LanguageEvaluation), language),
        Part(read_study(folder / "tasks" / "study.toml", TasksEvaluation), tasks),
    ]
