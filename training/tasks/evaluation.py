"""Evaluate a published set under one rule: the sets by the names that `evaluate --task` takes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from thoughtbubbles.model import Checkpoint
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.tasks import formats, gsm8k
from thoughtbubbles.training.tasks.choices import answer, summarise


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How sets are scored. Raises `ValueError` naming a setting below 1."""

    rule: Rule
    """The selection rule."""
    ratio: float | None = None
    """Streams per token in the budget; None: the model's own."""
    batch_size: int = 8
    """Continuations per forward pass."""
    limit: int | None = None
    """Questions of each file; None: all."""
    shots: tuple[gsm8k.Problem, ...] = ()
    """Solved problems in each prompt of GSM8K."""

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Outcome:
    """The scores of a set, or of one of its subsets."""

    subset: str
    """Empty for the whole set."""
    questions: int
    metrics: dict[str, float]


Item = TypeVar("Item")
Evaluate = Callable[[Checkpoint, Sequence[Path], Settings], Iterator[Outcome]]


def evaluate_task(checkpoint: Checkpoint, name: str, paths: Sequence[Path], settings: Settings) -> Iterator[Outcome]:
    """Yield the scores of the set `name` from the files `paths`: of its subsets, if it has several, then of the whole.

    Raises `ValueError` naming the set, or the file and line.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {name!r}")
    yield from TASKS[name](checkpoint, paths, settings)


def _evaluate_choices(
    checkpoint: Checkpoint, paths: Sequence[Path], settings: Settings, *, read: formats.Reader, metrics: Sequence[str]
) -> Iterator[Outcome]:
    questions = _some([question for path in paths for question in islice(read(path), settings.limit)], paths)
    answers = answer(checkpoint, questions, settings.rule, settings.batch_size, settings.ratio)
    subsets = dict.fromkeys(question.subset for question in questions)
    for subset in subsets if len(subsets) > 1 else ():
        part = [each for each in answers if each.question.subset == subset]
        yield Outcome(subset, len(part), summarise(part, metrics))
    yield Outcome("", len(answers), summarise(answers, metrics))


def _evaluate_gsm8k(checkpoint: Checkpoint, paths: Sequence[Path], settings: Settings) -> Iterator[Outcome]:
    problems = _some([each for path in paths for each in islice(gsm8k.read_problems(path), settings.limit)], paths)
    texts = gsm8k.solve(checkpoint, problems, settings.shots, rule=settings.rule, batch_size=settings.batch_size,
                        ratio=settings.ratio)  # fmt: skip
    yield Outcome("", len(problems), gsm8k.score(problems, texts))


def _some(read: list[Item], paths: Sequence[Path]) -> list[Item]:
    if not read:
        raise ValueError(f"no questions in {', '.join(map(str, paths))}")
    return read


TASKS: dict[str, Evaluate] = {
    "lambada": partial(_evaluate_choices, read=formats.lambada, metrics=("acc", "perplexity")),
    "hellaswag": partial(_evaluate_choices, read=formats.hellaswag, metrics=("acc", "acc_norm")),
    "blimp": partial(_evaluate_choices, read=formats.blimp, metrics=("acc",)),
    "piqa": partial(_evaluate_choices, read=formats.piqa, metrics=("acc", "acc_norm", "acc_bytes")),
    "openbookqa": partial(_evaluate_choices, read=formats.openbookqa, metrics=("acc", "acc_norm", "acc_bytes")),
    "agreement": partial(_evaluate_choices, read=formats.agreement, metrics=("acc",)),
    "gsm8k": _evaluate_gsm8k,
}
"""The function that evaluates each set."""
