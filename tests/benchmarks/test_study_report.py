"""The page of a study: its tables add up, its links and figures are there."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study_compare import by_arm
from benchmarks.study_page import page
from benchmarks.study_plan import Study
from benchmarks.study_report import main
from tests.benchmarks.harness import result


def rules(blockwise: float, dynamic: float, fixed: float, causal: float) -> dict[str, float]:
    return {"blockwise": blockwise, "dynamic": dynamic, "fixed": fixed, "causal": causal}


def lines(study: Study) -> list[dict[str, Any]]:
    return [
        result(study, "regular", 0, 3.50),
        result(study, "regular", 1, 3.40),
        result(study, "regular", 2, 9.00),  # has no partner
        result(study, "2l", 0, 3.40, rules=rules(3.0, 3.1, 3.3, 3.2), dial={"1": 4.0, "2": 3.0}),
        result(study, "2l", 1, 3.36, rules=rules(3.2, 3.5, 3.4, 3.2), dial={"1": 4.2, "2": 3.0}),
    ]


def test_the_tables_add_up(study: Study) -> None:
    told = page(study, by_arm(study, lines(study)), "results/study.jsonl", "the command")
    assert "5 runs of 2 arms, several at a time on each device; a machine; torch 2; 2026-01-01." in told
    assert "There was no time for `noise-5`." in told
    # 3.40 - 3.50 = -0.10 and 3.36 - 3.40 = -0.04: mean -0.07, deviation 0.06 / sqrt 2, error 0.03
    assert "| `2l` | 1.5M | 2M | 2 | 3.3800 ± 0.0283 | 29.37 | 1.2500 | -0.0700 ± 0.0424 | +0.0000 ± 0.0000 |" in told
    assert "+0.2000 ± 0.1414 | +0.2500 ± 0.0707 | +0.1000 ± 0.1414 |" in told
    assert "| `2l` | 4.1000 ± 0.1414 | 3.0000 ± 0.0000 |" in told
    assert "| forks help | 20.55 against 21.56 | -0.0700 ± 0.0300 | 2 of 2 | holds |" in told
    assert "| dynamic is better than fixed | 21.18 against 23.10 | -0.0500 ± 0.1500 | 1 of 2 | undecided |" in told
    assert "Of 2 claims, 1 hold, 1 are undecided." in told
    assert "(the standard deviation of a difference is 0.0424)" in told


def test_an_arm_is_told_by_what_it_changes(study: Study) -> None:
    found = by_arm(study, [*lines(study), result(study, "noise", 5, 3.0)])
    found["noise"][0] = found["noise"].pop(5)  # type: ignore[index, attr-defined]
    assert "| `noise` | `fork_noise = 1.0` | -0.4000 ± 0.0424 | 1 of 1 | better |" in page(study, found, "r", "c")


def test_prose_keeps_to_its_width_and_tables_are_whole(study: Study) -> None:
    told = page(study, by_arm(study, lines(study)), "results/study.jsonl", "the command")
    prose = [line for line in told.splitlines() if not line.startswith(("|", "!", "    "))]
    assert max(map(len, prose)) <= 120
    tables = re.findall(r"(?:^\|.*\n)+", told, re.MULTILINE)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_the_command_writes_the_page_and_its_figures(
    study: Study, toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    results, written = tmp_path / "results.jsonl", tmp_path / "docs" / "RESULTS.md"
    written.parent.mkdir()
    results.write_text("".join(json.dumps(line) + "\n" for line in lines(study)), encoding="utf-8")
    command = ["study_report", str(results), f"--study={toml}"]
    monkeypatch.setattr(sys, "argv", [*command, f"--page={written}"])
    main()
    told = written.read_text(encoding="utf-8")
    assert "](../results.jsonl)" in told
    images = re.findall(r"!\[.*\]\((images/study.*)\)", told)
    assert len(images) == 4
    assert "study-entropy.png" not in told
    assert all((written.parent / image).read_bytes()[:4] == b"\x89PNG" for image in images)
    assert told.count(f"python -m benchmarks.study_report {results} --study={toml} --page={written}") == 5
    (written.parent / "images" / "study-entropy.png").touch()
    main()
    assert "thoughtbubbles analyse 2l-0/checkpoint --regular regular-0/checkpoint" in written.read_text(
        encoding="utf-8"
    )
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert "| claim | in the paper |" in capsys.readouterr().out


def test_the_page_s_own_links_lead_somewhere(study: Study) -> None:
    docs = Path(__file__).parents[2] / "docs"
    told = page(study, by_arm(study, lines(study)), "../benchmarks/study.toml", "the command")
    links = [link.partition("#")[0] for link in re.findall(r"\[[^\]]*\]\(([^)]*)\)", told)]
    assert not [link for link in links if not (docs / link).exists() and not link.startswith("images/study")]
    assert len(links) > 5


def test_results_of_no_use_are_refused(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.jsonl").write_text("", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["study_report", str(tmp_path / "results.jsonl"), f"--study={toml}"])
    with pytest.raises(SystemExit, match="no result"):
        main()
