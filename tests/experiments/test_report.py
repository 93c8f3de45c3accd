"""The page of results: what it says follows from its tables, with whole results and with few; its figures are drawn."""

import json
import re
import sys
from pathlib import Path

import pytest

from experiments.checkpoint.decide import read_present
from experiments.checkpoint.page import part
from experiments.page import page
from experiments.part import Part, parts
from experiments.report import BEGIN, END, MARKED, PAGE, main
from experiments.runner.results import read_results
from experiments.summary import CARD, README, finding
from tests.experiments import made

ROOT = Path(__file__).parents[2]
STEADY = [0.0, 0.0003, -0.0002, 0.0001, -0.0001]
"""What seeds add to a loss: little, so that differences of 0.03 pass every test."""
ARMS = ("regular", "deeper", "scores", "1.25l", "2l", "4l", "random", "twice", "copy-3", "late", "early", "keep",
        "scores-keep")  # fmt: skip


@pytest.fixture(scope="module")
def nothing() -> list[Part]:
    return parts([], [])


def spread(mean: float, noise: float = 1.0) -> list[float]:
    return [mean + noise * each for each in STEADY]


def both(nothing: list[Part], losses: dict[str, list[float]], seeds: dict[str, list[int]] | None = None) -> list[Part]:
    """Return both studies with results of language at these losses, and of tasks for these seeds."""
    text, problems = nothing
    error = {"2l": 0.3, "loop-2": 0.4}
    found = made.tasks(
        problems.study, "2m", seeds or {}, lambda arm, seed: error.get(arm, 0.5) + 0.001 * (seed * len(arm) % 3)
    )
    return [Part(text.study, made.language(text.study, "24m", losses)), Part(problems.study, found)]


def whole(**means: list[float]) -> dict[str, list[float]]:
    """Return losses of all arms, 3.6 but for those named; `_` in front of a figure."""
    named = {arm.lstrip("_"): losses for arm, losses in means.items()}
    return {arm: named.get(arm, [loss + 0.0001 * i for i, loss in enumerate(spread(3.6))]) for arm in ARMS}


def outcomes(text: str) -> dict[str, str]:
    """Return the plan's tables of the page: what was found of each outcome."""
    rows = re.findall(r"^\| (.+) \| .+ \| (\*\*yes\*\*|no|not yet decided) \|$", text, re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize(
    ("losses", "says", "reading", "claim"),
    [
        (whole(_2l=spread(3.5, -1)), "**Forks help** (English text, ", "forks help",
         ("holds", "Models with forks are better than regular ones")),
        (whole(_2l=spread(3.5, -1), scores=spread(3.5, -1.1)), "**Whether the forks themselves help is not shown** (",
         "what helps may be the scores; no claim for forks",
         ("holds", "Models with forks are better than regular ones")),
        (whole(_2l=spread(3.5, 400)), "**Forks were not shown to help** (", "forks do not help at this size and length",
         ("is open", "It is open whether models with forks are better than regular ones")),
        (whole(_2l=spread(3.7, -1)), "**Forks do harm** (", "forks do not help at this size and length",
         ("is contradicted", "Models with forks are worse than regular ones")),
        (whole(_2l=spread(3.6, 1.2)), "**Forks make no difference that matters** (", None,
         ("is equal to within 0.01", "Models with forks are as good as regular ones, to within 1% of perplexity")),
    ],
)  # fmt: skip
def test_the_finding_the_summary_and_the_tables_say_the_same(
    nothing: list[Part], losses: dict[str, list[float]], says: str, reading: str | None, claim: tuple[str, str]
) -> None:
    studies = both(nothing, losses)
    text, short = page(studies), finding(studies, README)
    assert short.startswith(says)
    assert "docs/RESULTS.md" in short
    assert re.search(rf"^\| κ = 2L is better than a regular model \|.+\| {claim[0]} \|$", text, re.MULTILINE)
    assert f"\n- **{claim[1]}**: perplexity " in text
    assert "not yet decided" not in outcomes(text).values()
    first = re.findall(r"^\| `2l` < `regular` .+ \| (.+) \| \*\*yes\*\* \|$", text, re.MULTILINE)
    assert [each.partition(" (")[0] for each in first] == ([reading] if reading else [])
    assert reading is None or f"By the plan's table: {reading}" in text


def test_with_whole_results_of_tasks_the_plan_is_read(nothing: list[Part]) -> None:
    arms = list(nothing[1].study.arms)
    studies = both(nothing, whole(), {arm: [0, 1, 2, 3, 4] for arm in arms})
    text = page(studies)
    found = outcomes(text)
    assert found["`2l` < `regular` and `2l` < `scores` hold on wide tasks"] == "**yes**"
    assert found["`loop-2` < `2l` on deep, `2l` < `loop-2` on wide tasks"] == "no"  # here loops are worse on both
    assert found["ratio 4 < ratio 1 holds on hard wide problems, by more than on n of 1 and 2"] == "**yes**"
    assert found["forks of `2l` on noise as many as on hard answers, or more"] == "no"
    assert "forks help (wrong answers -14.5 percentage points) where many things" in finding(studies, CARD)
    assert "Claims are judged on the seeds that every arm in them has: 0, 1, 2, 3, 4." in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)
    assert "| `2l` | 0.002 | 24.4M | 1.79 | 5 |" in text


def test_what_the_first_three_seeds_alone_decide_is_said(nothing: list[Part]) -> None:
    losses = {"regular": [3.6] * 5, "2l": [3.58, 3.62, 3.6, 3.5, 3.5], "deeper": [3.6] * 5}
    text = page(both(nothing, losses))
    alone = text.partition("By those three alone")[2].partition("####")[0]
    assert re.search(
        r"^\| κ = 2L is better than a regular model .+\| \+0\.0000 \| .+ \| is open \|$", alone, re.MULTILINE
    )
    assert "deeper" not in alone  # it has no other seeds
    assert "By those three alone" not in page(both(nothing, {"regular": [3.6] * 3, "2l": [3.5] * 3}))


def test_fewer_seeds_than_planned_are_said(nothing: list[Part]) -> None:
    studies = both(nothing, whole(), {arm: [0, 1, 2] for arm in nothing[1].study.arms})
    assert "Claims are judged on the seeds that every arm in them has: 0, 1, 2 (5 seeds are planned)." in page(studies)
    assert "(3 of 5 planned seeds)" in finding(studies, README)


def test_few_results_decide_nothing_and_what_lacks_is_named(nothing: list[Part]) -> None:
    studies = both(nothing, {"regular": [3.6], "2l": [3.5], "scores": [3.55]}, {"regular": [0], "2l": [0]})
    text = page(studies)
    assert "κ = 2L is better than a regular model | `2l` − `regular` | -0.1000 | – |" in text
    assert "| is open, one seed |" in text
    summary = text.partition("## In short")[2].partition("## Part 1")[0]
    assert "perplexity -9.5% in one pair of runs, which cannot be told from chance." in summary
    assert "95%" not in summary
    assert "are better than regular ones**: perplexity" in summary
    found = outcomes(text)
    assert found.pop("forks of `2l` on noise as many as on hard answers, or more") == "no"  # described, not tested
    assert set(found.values()) == {"not yet decided"}
    assert text.count("No claim has two seeds yet") == 2
    assert "Verdicts on 12 claims: is open, one seed: 3; not measured: 9." in text
    assert re.search(r"^- `24m`: 44 of 47 reported runs were not made: .*`2l` seeds 1, 2, 3, 4,", text, re.MULTILINE)
    assert "- `64m`: none of 15 reported runs was made." in text
    assert finding(studies, README).startswith("**Not shown: whether the forks themselves help.** 3 of 47 runs")


def test_a_deeper_model_that_is_worse_than_a_regular_one_is_no_proof(nothing: list[Part]) -> None:
    said = "`deeper` is itself worse than `regular` (perplexity +5.1%)"
    assert page(both(nothing, {"regular": [3.6], "deeper": [3.65]})).count(said) == 2  # in short, and below the claims
    assert said not in page(both(nothing, {"regular": [3.6], "deeper": [3.55]}))


def test_the_gap_is_told_by_tokens(nothing: list[Part]) -> None:
    studies = both(nothing, {"regular": [3.6, 3.6], "2l": [3.5, 3.52, 3.0]})
    studies[0].results[-1]["curve"] = dict.fromkeys(studies[0].results[-1]["curve"], 9.0)  # of a seed of one arm alone
    text = page(studies)
    assert "| arm, after | 4.9M | 9.8M | 14.7M | 19.7M | 24.6M | 29.5M | 34.4M | 39.3M |" in text
    assert "| `2l` | " + " | ".join(["-0.0900"] * 8) + " |" in text


def test_a_verdict_that_further_claims_may_change_is_provisional(nothing: list[Part]) -> None:
    """p is 0.0051 alone: with three claims it holds, with the twelve that are planned it would not."""
    losses = {"regular": [3.6, 3.6, 3.6], "2l": [3.58, 3.582, 3.577], "scores": [3.6, 3.59, 3.61]}
    studies = both(nothing, losses)
    text = page(studies)
    assert re.search(r"^\| κ = 2L is better than a regular model \|.+ \| holds, provisional \|$", text, re.MULTILINE)
    assert "Provisional: the planned claims that are not measured yet may change it." in text
    assert outcomes(text)["`2l` < `regular` open or contradicted"] == "not yet decided"
    short = finding(studies, README)
    assert short.startswith("**Not shown: whether the forks themselves help.** 9 of 47 runs that are to tell are made.")
    assert "So far, against regular models, perplexity -2.0% (95% interval" in short


def test_without_results_the_page_says_so(nothing: list[Part]) -> None:
    text = page(nothing)
    assert text.count("Not measured yet: no reported run has been made.") == 2
    assert text.count("No run has been made.") == 2


def test_a_run_that_diverged_is_named(nothing: list[Part]) -> None:
    studies = both(nothing, {"regular": [3.6, 3.61], "2l": [3.5, 3.51]})
    for line in studies[0].results:
        if (line["arm"], line["seed"]) == ("2l", 1):
            line["loss"] = None
    assert "diverged, and so in no table: `2l` seed 1." in page(studies)


def test_the_command_writes_the_page_its_figures_and_the_finding(
    nothing: list[Part], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    studies = both(nothing, {"regular": [3.6], "2l": [3.5], "scores": [3.55]}, {"regular": [0, 1], "4l": [0, 1]})
    words = []
    for name, study in zip(("language", "tasks"), studies, strict=True):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in study.results), encoding="utf-8")
        words.append(f"--{name}={tmp_path / name}")
    words.append(f"--checkpoint={tmp_path / 'none'}")
    for path in (*MARKED, PAGE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"before\n{BEGIN}old\n{END}after\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["report", *words, f"--root={tmp_path}", "--write"])
    main()
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    images = re.findall(r"!\[.*\]\((images/(?:language|tasks).*)\)", text)
    assert [Path(image).stem for image in images] == [
        "language-24m-differences", "language-24m-curves", "language-24m-dial", "language-24m-forks",
        "tasks-2m-errors", "tasks-2m-accuracy", "tasks-2m-forks",
    ]  # fmt: skip
    assert all((tmp_path / PAGE.parent / image).read_bytes()[:4] == b"\x89PNG" for image in images)
    for path in MARKED:
        written = (tmp_path / path).read_text(encoding="utf-8")
        assert written.startswith(f"before\n{BEGIN}\n**Not shown")
        assert written.endswith(f"\n\n{END}after\n")
    monkeypatch.setattr(sys, "argv", ["report", *words])
    main()
    assert capsys.readouterr().out == text
    (tmp_path / "README.md").write_text("no marks", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["report", *words, f"--root={tmp_path}", "--write"])
    with pytest.raises(ValueError, match=r"README.md: needs one line '<!-- finding -->'"):
        main()


def test_the_committed_page_and_findings_are_of_the_committed_results() -> None:
    """`python -m experiments.report --write` renews them."""
    folder = ROOT / "benchmarks" / "results"
    *results, third = [read_results(folder / f"{name}.jsonl") for name in ("language", "tasks", "checkpoint")]
    studies, shipped = parts(*results), part(third, read_present(folder / "checkpoint-present.json"))
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(studies, shipped)
    for path, links in MARKED.items():
        said = (ROOT / path).read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
        assert said.split() == finding(studies, links).split()
