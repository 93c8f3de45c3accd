"""Decide which checkpoint is shipped, by the rule of docs/experiments/checkpoint.md, and what the short runs chose."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.language.compare import RULES, document_interval, pairs
from experiments.runner.comparison import Comparison, judge
from experiments.runner.found import Found
from experiments.runner.plan import Result, Study

REPORTED = "11m"
"""The size whose runs are reported."""
NEW, PRESENT = "drawn", "present"
"""The arm that may be shipped: the choice took a drawn ratio and English alone."""
PLAIN = "2l"
WORTH = 0.005
"""Nats that a ratio that is drawn may cost."""
MEGABYTES = 24
"""Most that weights may have."""


class Criterion(NamedTuple):
    """A condition for shipping the new checkpoint."""

    says: str
    new: str
    present: str
    holds: bool


def read_present(path: Path) -> Result | None:
    """Return what `experiments.checkpoint.present` wrote; None without it."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def compare(study: Study, found: Found) -> list[Comparison]:
    """Return a comparison of the reported runs for each of the study's claims."""
    return judge(pairs(study, found), RULES)


def criteria(new: Result, present: Result) -> list[Criterion]:
    """Return what must hold, all of it, for `new` to take the place of `present`."""
    interval = document_interval({NEW: {0: new}, PRESENT: {0: present}}, NEW, PRESENT)
    assert interval is not None  # both have the documents
    bits = [each["bits_per_byte"] for each in (new, present)]
    other = [each["other"]["bits_per_byte"] for each in (new, present)]
    agreement, size = [each["agreement"]["all"] for each in (new, present)], 2 * new["parameters"] / 1e6
    return [
        Criterion(
            f"fewer bits per byte on the reported text, loss {interval[0]:+.4f} to {interval[1]:+.4f} by documents",
            f"{bits[0]:.4f}", f"{bits[1]:.4f}", bits[0] < bits[1] and interval[1] < 0,
        ),
        Criterion("no more bits per byte on definitions", f"{other[0]:.4f}", f"{other[1]:.4f}", other[0] <= other[1]),
        Criterion("no less agreement", *(f"{each:.4f}" for each in agreement), agreement[0] >= agreement[1]),
        Criterion(f"at most {MEGABYTES} MB of weights", f"{size:.1f}", "", size <= MEGABYTES),
    ]  # fmt: skip


def chosen(study: Study, results: Sequence[Result]) -> dict[str, bool | None]:
    """Return whether the ratio is drawn, and whether the text is mixed; None where a run of the choice is missing."""
    plain, drawn, mixed = (
        _loss(study, *each, results) for each in (("choice", PLAIN), ("choice", NEW), ("choice-mixed", PLAIN))
    )
    return {
        "drawn": None if plain is None or drawn is None else drawn <= plain + WORTH,
        "mixed": None if plain is None or mixed is None else mixed <= plain,
    }


def _loss(study: Study, size: str, arm: str, results: Sequence[Result]) -> float | None:
    """Return the loss of a short run; None where it is missing, infinity where it diverged."""
    [run] = study.tuning_runs(size, arm)
    result = run.find(results)
    if result is None:
        return None
    return float("inf") if result["loss"] is None else result["loss"]
