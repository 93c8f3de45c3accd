"""The results of a study: a line of JSON for each run."""

import json
from pathlib import Path

from experiments.runner.plan import Result

RESULT_FILE = "result.json"
"""In a run's own folder: its line."""


def read_results(path: Path) -> list[Result]:
    """Return the lines of a results file; none if there is no file.

    A last line that was cut off by a kill is left out, and a line that is there twice, as after a merge of two copies
    of the file, counts once. `ValueError` for any other line that is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in dict.fromkeys(lines) if line.endswith("\n") and line.strip()]


def append_result(path: Path, line: str) -> None:
    """Add a run's line to a results file, after whatever a kill left of another."""
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    if not whole:
        kept = path.read_bytes()
        path.write_bytes(kept[: kept.rfind(b"\n") + 1])
    with path.open("a", encoding="utf-8") as file:
        file.write(line.rstrip("\n") + "\n")
