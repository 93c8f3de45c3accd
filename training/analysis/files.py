"""Write the data of the figures: a CSV file for each, and a JSON file with the settings."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from thoughtbubbles.training.analysis.study import ForkMap, Study
from thoughtbubbles.training.analysis.tokens import Bin


def write_data(folder: Path, found: Study, binned: Sequence[Bin], mapped: ForkMap, about: dict[str, Any]) -> None:
    """Write `analysis.json` and tokens, entropy, attention, map, budget and scores as `.csv` to `folder`."""
    loss = sum(row.loss for row in found.tokens) / len(found.tokens)
    summary = {**about, "tokens": len(found.tokens), "loss": loss}
    (folder / "analysis.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    forks = [f"forks_layer_{layer}" for layer in mapped.forks]
    head = ("window", "position", "token", *forks, "entropy", "regular_entropy", "loss")
    _write(folder / "tokens.csv", head, ((*row[:3], *row.forks, *row[4:]) for row in found.tokens))
    _write(folder / "map.csv", ("token", *forks), zip(mapped.tokens, *mapped.forks.values(), strict=True))
    for name, rows in (("attention", found.attention), ("budget", found.budget), ("scores", found.scores)):
        write_rows(folder / f"{name}.csv", rows)
    write_rows(folder / "entropy.csv", binned)


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write named tuples, at least one, under their names."""
    _write(path, rows[0]._fields, rows)


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
