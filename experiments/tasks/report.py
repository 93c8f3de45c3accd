"""Print what `experiments.tasks.study` found: claims, errors, the dial, and where models fork, as Markdown tables.

python -m experiments.tasks.report [RESULTS.jsonl] [--study FILE]
"""

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runner.intervals import LEVEL, Interval, holm, t_interval, t_test
from experiments.runner.plan import Claim, Result, Study, read_study
from experiments.runner.results import read_results
from experiments.tasks.measure import GROUPS, HARDEST, OWN, Evaluation
from thoughtbubbles.training.synthetic import TASKS

Found = Mapping[str, Mapping[int, Result]]
"""Reported results by arm and seed."""


class Comparison(NamedTuple):
    """What the results say of a claim."""

    claim: Claim
    apart: list[float]
    """By seed, how many more errors `lower` makes than `than`."""
    interval: Interval | None
    p: float | None
    """Two-sided, of the t-test; corrected by Holm over the claims."""

    @property
    def word(self) -> str:
        """Return what docs/experiments/tasks.md calls this outcome."""
        if not self.apart:
            return "not measured"
        if self.p is None or self.p >= LEVEL:
            return "is open"
        return "holds" if statistics.mean(self.apart) < 0 else "is contradicted"


def main() -> None:
    """Print the tables of each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", default=Path("benchmarks/results/tasks.jsonl"))
    parser.add_argument("--study", type=Path, default=Path("experiments/tasks/study.toml"))
    args = parser.parse_args()
    study, results = read_study(args.study, Evaluation), read_results(args.results)
    sizes = {size: found for size in study.sizes if (found := by_arm(study, size, results))}
    if not sizes:
        raise SystemExit(f"error: no reported result in {args.results} has the settings of {args.study}")
    for size, found in sizes.items():
        print("\n\n".join([f"## {size}", *tables(study, found)]))


def by_arm(study: Study, size: str, results: Sequence[Result]) -> Found:
    """Return the reported results at a size under the study's present settings; without those that diverged."""
    found: dict[str, dict[int, Result]] = {}
    for run in study.runs(results):
        result = next(filter(run.is_of, results), None)
        if (run.size, run.kind) == (size, "final") and result is not None and result["loss"] is not None:
            found.setdefault(run.arm, {})[run.seed] = result
    return found


def compare(study: Study, found: Found) -> list[Comparison]:
    """Return a comparison for each of the study's claims."""
    apart = [_differences(found, claim) for claim in study.claims]
    corrected = holm([t_test(each) for each in apart])
    return [
        Comparison(claim, each, t_interval(each), p)
        for claim, each, p in zip(study.claims, apart, corrected, strict=True)
    ]


def tables(study: Study, found: Found) -> list[str]:
    """Return the claims, the errors, and of each arm that forks its dial and its forks."""
    forking = {arm: seeds for arm, seeds in found.items() if any(len(r["errors"]) > 1 for r in seeds.values())}
    return [
        "Errors of `lower` less those of `than`, in percentage points, mean over seeds and 95% interval.",
        _table(["claim", "seeds", "difference", "p (Holm)", "verdict"], map(_claim_row, compare(study, found))),
        "Wrong answers in percent, mean over seeds: n from 1 to 8 / from 9 to 16.",
        _table(["arm", "seeds", *GROUPS], (_errors_row(arm, seeds) for arm, seeds in found.items())),
        *(part for arm, seeds in forking.items() for part in _of_forks(arm, seeds)),
    ]


def _differences(found: Found, claim: Claim) -> list[float]:
    lower, than = found.get(claim.lower, {}), found.get(claim.than, {})
    ratios = [OWN, OWN] if claim.ratios is None else [f"{ratio:g}" for ratio in claim.ratios]
    values = [
        (lower[seed]["errors"][ratios[0]][claim.measure], than[seed]["errors"][ratios[1]][claim.measure])
        for seed in sorted(lower.keys() & than.keys())
    ]
    return [one - other for one, other in values if one is not None and other is not None]


def _claim_row(of: Comparison) -> list[str]:
    if not of.apart:
        return [of.claim.says, "0", "–", "–", of.word]
    interval = "" if of.interval is None else " ({:+.1f} to {:+.1f})".format(*(100 * end for end in of.interval))
    difference = f"{100 * statistics.mean(of.apart):+.1f}{interval}"
    return [of.claim.says, str(len(of.apart)), difference, "–" if of.p is None else f"{of.p:.3f}", of.word]


def _errors_row(arm: str, seeds: Mapping[int, Result]) -> list[str]:
    errors = [result["errors"][OWN] for result in seeds.values()]
    pairs = [(_percent(e[group] for e in errors), _percent(e[f"{group}-beyond"] for e in errors)) for group in GROUPS]
    return [f"`{arm}`", str(len(seeds)), *(" / ".join(pair) for pair in pairs)]


def _of_forks(arm: str, seeds: Mapping[int, Result]) -> list[str]:
    results = list(seeds.values())
    ratios = [ratio for ratio in results[0]["errors"] if ratio != OWN]
    dial = [[ratio, *(_percent(r["errors"][ratio][f"{group}{of}"] for r in results) for group in ("wide", "deep")
                      for of in ("-easy", "-hard", "-beyond"))] for ratio in ratios]  # fmt: skip
    inside = [[task, *(_mean_of(results, name, task, of) for name in ("forks", "answer_forks", "answer_entropy")
                       for of in (slice(0, 4), slice(4, 8), slice(8, HARDEST)))] for task in TASKS]  # fmt: skip
    ranges = ["1–2", "5–8", "9–16"]
    heads = [f"{group}, n {of}" for group in ("wide", "deep") for of in ranges]
    parts = [f"{name}, n {of}" for name in ("forks a token", "forks at answers", "entropy at answers, nats")
             for of in ("1–4", "5–8", "9–16")]  # fmt: skip
    return [f"`{arm}`: wrong answers in percent by `fork_ratio`.", _table(["ratio", *heads], dial),
            f"`{arm}`: forks and entropy by task, at its own ratio.", _table(["task", *parts], inside)]  # fmt: skip


def _mean_of(results: Sequence[Result], name: str, task: str, of: slice) -> str:
    values: list[Any] = [value for result in results for value in result["inside"][name][task][of] if value is not None]
    return f"{statistics.mean(values):.2f}" if values else "–"


def _percent(values: Iterable[float | None]) -> str:
    present = [value for value in values if value is not None]
    return f"{100 * statistics.mean(present):.1f}" if present else "–"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
