"""Tables and figures of a study, held to numbers that a person can add up."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study_plan import Study
from benchmarks.study_report import by_arm, differences, losses, main, spread, tables, verdict
from tests.benchmarks.harness import result


def rules(blockwise: float, dynamic: float, fixed: float, causal: float) -> dict[str, float]:
    return {"blockwise": blockwise, "dynamic": dynamic, "fixed": fixed, "causal": causal}


def lines(study: Study) -> list[dict[str, Any]]:
    dial = {"1": 4.0, "2": 3.0}
    return [
        result(study, "regular", 0, 3.50),
        result(study, "regular", 1, 3.40),
        result(study, "regular", 2, 9.00),  # has no partner
        result(study, "2l", 0, 3.40, rules=rules(3.0, 3.1, 3.3, 3.2), dial=dial),
        result(study, "2l", 1, 3.36, rules=rules(3.2, 3.5, 3.4, 3.2), dial={"1": 4.2, "2": 3.0}),
    ]


def test_differences_are_between_equal_seeds() -> None:
    assert differences({0: 3.0, 1: 2.0, 4: 1.0}, {1: 2.5, 0: 2.75, 2: 9.0}) == [0.25, -0.5]


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        ([-0.1, -0.2], "holds: 2 of 2"),
        ([0.1, 0.2], "does not hold: 0 of 2"),
        ([-0.1], "holds: 1 of 1"),
        ([-0.01, -0.4], "undecided: 2 of 2"),  # mean 0.205, error 0.195
        ([-0.1, 0.2, -0.3], "undecided: 2 of 3"),
        ([], "not measured"),
    ],
)
def test_a_claim_holds_where_every_seed_says_so_and_they_agree(apart: list[float], said: str) -> None:
    assert verdict(apart) == said


def test_spread_is_the_sample_s() -> None:
    assert spread([1.0, 2.0, 3.0]) == "2.0000 ± 1.0000"
    assert spread([0.5], sign=True) == "+0.5000"
    assert spread([]) == "–"


def test_the_tables_add_up(study: Study) -> None:
    told = "\n\n".join(tables(study, by_arm(study, lines(study))))
    assert told.startswith("5 runs of 64 tokens each; a machine; torch 2; 2026-01-01.")
    # 3.40 - 3.50 = -0.10 and 3.36 - 3.40 = -0.04: mean -0.07, deviation 0.06 / sqrt 2
    assert "| 2l | 1.5M | 2M | 2 | 3.3800 ± 0.0283 | 29.37 | 1.2500 | -0.0700 ± 0.0424 | +0.0000 ± 0.0000 |" in told
    assert "| 2l | 3.1000 | 3.3000 | 3.3500 | 3.2000 | +0.2000 ± 0.1414 | +0.2500 ± 0.0707 | +0.1000 ± 0.1414 |" in told
    assert "| 2l | 4.1000 ± 0.1414 | 3.0000 ± 0.0000 |" in told
    assert "| forks help | 20.55 against 21.56 | -0.0700 ± 0.0424 | holds: 2 of 2 |" in told
    assert "| dynamic is better than fixed | 21.18 against 23.10 | -0.0500 ± 0.2121 | undecided: 1 of 2 |" in told
    assert "noise" not in told


def test_results_under_other_settings_are_left_out(study: Study) -> None:
    stale = json.loads(json.dumps(result(study, "2l", 0, 1.0)))
    stale["settings"]["model"]["n_layer"] = 9
    found = by_arm(study, [stale, *lines(study)])
    assert losses(found, "2l") == {0: 3.40, 1: 3.36}


def test_the_command_prints_and_draws(
    study: Study, toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    results, figures = tmp_path / "results.jsonl", tmp_path / "figures"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines(study)), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["study_report", str(results), f"--study={toml}", f"--figures={figures}"])
    main()
    assert "| claim | in the paper |" in capsys.readouterr().out
    drawn = {path.name: path.read_bytes()[:4] for path in figures.iterdir()}
    assert drawn == dict.fromkeys(("study-cost.png", "study-dial.png", "study-differences.png"), b"\x89PNG")


def test_results_of_no_use_are_refused(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.jsonl").write_text("", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["study_report", str(tmp_path / "results.jsonl"), f"--study={toml}"])
    with pytest.raises(SystemExit, match="no result"):
        main()
