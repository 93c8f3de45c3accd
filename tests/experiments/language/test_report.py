"""The page of a study: its tables add up, its figures are drawn, and what was not run is named."""

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.language.report import main
from experiments.runner.plan import Study
from tests.experiments.harness import result


def reported(study: Study, arm: str, seed: int, loss: float) -> dict[str, Any]:
    """Return a reported result, with details of seed 0."""
    run = study.run("small", arm, "final", seed, 1e-2)
    where = {"machine": "a machine", "torch": "2", "date": "2026-01-01", "seconds": 1800}
    sizes = {"tokens": 96, "parameters": 1_500_000, "flops_per_token": 2e6 if arm == "regular" else 3e6}
    losses = {"blockwise": loss, "other": {"loss": loss + 1}, "curve": {"2": loss + 0.5, "3": loss}}
    texts = {"documents": [100 * loss, 50 * loss], "document_tokens": [100, 50]}
    entropy = [[10 * i for i in range(16)]] * 2
    inside: dict[str, Any] = {"entropy": entropy}
    if arm != "regular":
        inside["forks"] = ["0110010101010111"] * 2
        inside["budget"] = [{"layer": 1, "tokens": 32, "budget": 64, "streams": 48, "copies": 16, "deleted": 0}]
        inside["scores"] = [{"layer": 1, "streams": "originals", "number": 32, "mean": 0.5},
                            {"layer": 1, "streams": "forks", "number": 0}]  # fmt: skip
    dial = {} if arm == "regular" else {"1": loss + 0.3, "2": loss}
    details = {"inside": inside, "dial": dial, "rules": {"causal": loss}} if seed == 0 else {}
    return result(run, loss, **where, **sizes, **losses, **texts, **details)


@pytest.fixture
def results(study: Study, tmp_path: Path) -> Path:
    tuning = [(run, 3 - 100 * run.training.learning_rate) for arm in ("regular", "2l") for run in
              study.tuning_runs("small", arm)]  # fmt: skip
    lines = [result(run, loss if run.arm == "2l" or loss < 2.5 else None, seconds=1800) for run, loss in tuning]
    for seed, (regular, forks) in enumerate([(3.5, 3.4), (3.4, 3.36)]):
        lines += [reported(study, "regular", seed, regular), reported(study, "2l", seed, forks)]
    path = tmp_path / "language.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_command_writes_the_page_and_its_figures(
    toml: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    written = tmp_path / "docs" / "RESULTS.md"
    written.parent.mkdir()
    command = ["study_report", str(results), f"--study={toml}"]
    monkeypatch.setattr(sys, "argv", [*command, f"--page={written}"])
    main()
    text = written.read_text(encoding="utf-8")
    assert "4 reported runs and 4 that chose learning rates; a machine; torch 2; 2026-01-01; 4.0 hours" in text
    assert "](../language.jsonl)" in text
    modules = [importlib.import_module(name) for name in re.findall(r"python -m (\S+)", text)]
    assert len(modules) == 2
    assert all('__name__ == "__main__"' in inspect.getsource(each) for each in modules), "the page's commands run"
    assert "Planned and not run (arm and seed): `random` 0." in text
    # 3.40 - 3.50 = -0.10 and 3.36 - 3.40 = -0.04: mean -0.07, deviation 0.0424, t of one degree of freedom 12.706
    assert "| forks help | `2l` − `regular` | -0.0700 | -0.4512 to +0.3112 | -0.0700 to -0.0700 | 0.258 |" in text
    assert "| 2 of 2 | is open |" in text
    assert "| `2l` | 0.01 ! | 1.5M | 1.50 | 2 | 3.3800 ± 0.0283 | 3.3800 ± 0.0283 | 4.3800 ± 0.0283 | -0.0700 " in text
    assert "| `regular` | × | 2.0000 |" in text
    assert "| `2l` | 3.7000 | 3.4000 |" in text
    assert "| `2l` | 1 | 1.50 | 75% | 0.500 | – |" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)
    images = re.findall(r"!\[.*\]\((images/language.*)\)", text)
    assert [image.split("-")[-1] for image in images] == ["differences.png", "curves.png", "dial.png", "forks.png"]
    assert all((written.parent / image).read_bytes()[:4] == b"\x89PNG" for image in images)
    monkeypatch.setattr(sys, "argv", command)
    main()
    printed = capsys.readouterr().out
    assert "| claim | difference of |" in printed
    assert "images/" not in printed


def test_results_of_no_use_are_refused(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.jsonl").write_text("", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["study_report", str(tmp_path / "results.jsonl"), f"--study={toml}"])
    with pytest.raises(SystemExit, match="no reported result"):
        main()
