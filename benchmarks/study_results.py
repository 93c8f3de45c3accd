"""The results of `benchmarks.study`: a line of JSON for each arm and seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study_plan import Run, Study

RESULT_FILE = "result.json"
"""In a run's own folder: its line."""

Result = dict[str, Any]


def read_results(path: Path) -> list[Result]:
    """The lines of a results file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def result_of(study: Study, run: Run, results: Sequence[Result]) -> Result | None:
    """What was found of `run` under the settings that the study has now."""
    settings = study.settings(run)
    same = (r for r in results if (r["arm"], r["seed"]) == (run.arm, run.seed) and r["settings"] == settings)
    return next(same, None)


def missing(study: Study, results: Sequence[Result]) -> list[Run]:
    """The runs without a result, the most important first."""
    return [run for run in study.runs if result_of(study, run, results) is None]
