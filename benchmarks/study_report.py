"""What `benchmarks.study` found, as Markdown tables and figures.

    python -m benchmarks.study_report RESULTS.jsonl [--study benchmarks/study.toml] [--figures docs/images]

Differences are paired: each seed against the same seed. ± is the standard deviation over seeds. A claim holds where
every seed that both sides have says so and the mean is two standard errors from nothing; it does not hold where every
seed says the contrary, and as clearly; else it is undecided. The figures (study-differences.png, study-cost.png,
study-dial.png) need the extra `plots`.
"""

import argparse
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from benchmarks.study_plan import Claim, Study, read_study
from benchmarks.study_results import Result, read_results, result_of
from model.selection import Rule

Found = Mapping[str, Mapping[int, Result]]
"""By arm, in the order of the study, and seed."""


def main() -> None:
    """Print the tables; draw the figures if asked."""
    args = _arguments()
    study, results = read_study(args.study), read_results(args.results)
    found = by_arm(study, results)
    if not found:
        raise SystemExit(f"error: no result in {args.results} has the settings of {args.study}")
    print("\n\n".join(tables(study, found)))
    if args.figures:
        from benchmarks import study_figures  # noqa: PLC0415 - only who draws needs matplotlib

        study_figures.draw(study, found, args.figures)


def by_arm(study: Study, results: Sequence[Result]) -> Found:
    """The results that have the study's own settings."""
    found: dict[str, dict[int, Result]] = {}
    for run in study.runs:
        if (result := result_of(study, run, results)) is not None:
            found.setdefault(run.arm, {})[run.seed] = result
    return found


def tables(study: Study, found: Found) -> list[str]:
    """Losses, rules, dial and claims."""
    return [_where(found), _losses(study, found), _rules(found), _dial(found), _claims(study, found)]


def differences(lower: Mapping[int, float], than: Mapping[int, float]) -> list[float]:
    """By how much the first is above the second, for each seed that both have."""
    return [lower[seed] - than[seed] for seed in sorted(lower.keys() & than.keys())]


def losses(found: Found, side: str) -> dict[int, float]:
    """By seed, of an arm or of ARM:RULE."""
    arm, _, rule = side.partition(":")
    return {seed: (r["rules"][rule] if rule else r["loss"]) for seed, r in found.get(arm, {}).items()}


def verdict(apart: Sequence[float]) -> str:
    """Whether the lower side was lower: in how many seeds, and whether their spread leaves that open."""
    if not apart:
        return "not measured"
    below = sum(each < 0 for each in apart)
    word = {len(apart): "holds", 0: "does not hold"}.get(below, "undecided")
    if len(apart) > 1 and abs(statistics.mean(apart)) < 2 * statistics.stdev(apart) / math.sqrt(len(apart)):
        word = "undecided"
    return f"{word}: {below} of {len(apart)}"


def _where(found: Found) -> str:
    results = [result for seeds in found.values() for result in seeds.values()]
    told = [sorted({str(result[key]) for result in results}) for key in ("machine", "torch", "date", "tokens")]
    machine, torch, date, tokens = map(", ".join, told)
    return f"{len(results)} runs of {tokens} tokens each; {machine}; torch {torch}; {date}."


def _losses(study: Study, found: Found) -> str:
    peers = [losses(found, name) for name in (study.report.regular, study.report.forks)]
    rows = []
    for arm, seeds in found.items():
        own, one = losses(found, arm), next(iter(seeds.values()))
        per_byte = [result["bits_per_byte"] for result in seeds.values()]
        rows.append([
            arm, f"{one['parameters'] / 1e6:.1f}M", f"{one['flops_per_token'] / 1e6:.0f}M", str(len(seeds)),
            spread(own.values()), f"{math.exp(statistics.mean(own.values())):.2f}", f"{statistics.mean(per_byte):.4f}",
            *(spread(differences(own, peer), sign=True) for peer in peers),
        ])  # fmt: skip
    return _table(
        ["arm", "parameters", "operations a token", "seeds", "loss", "perplexity", "bits/byte",
         f"loss against {study.report.regular}", f"against {study.report.forks}"], rows
    )  # fmt: skip


def _rules(found: Found) -> str:
    """Mean losses, and how far each rule is from `blockwise` in the same model."""
    rules = get_args(Rule)
    rows = []
    for arm, seeds in found.items():
        if len(next(iter(seeds.values()))["rules"]) < len(rules):
            continue
        by_rule = {rule: losses(found, f"{arm}:{rule}") for rule in rules}
        means = [f"{statistics.mean(by_rule[rule].values()):.4f}" for rule in rules]
        apart = [spread(differences(by_rule[rule], by_rule["blockwise"]), sign=True) for rule in rules[1:]]
        rows.append([arm, *means, *apart])
    return _table(["arm", *rules, *(f"{rule} − blockwise" for rule in rules[1:])], rows)


def _dial(found: Found) -> str:
    rows, ratios = [], list[str]()
    for arm, seeds in found.items():
        dials = [result["dial"] for result in seeds.values() if result["dial"]]
        if dials:
            ratios = list(dials[0])
            rows.append([arm, *(spread(dial[ratio] for dial in dials) for ratio in ratios)])
    return _table(["arm, at ratio", *ratios], rows)


def _claims(study: Study, found: Found) -> str:
    rows = []
    for claim in study.claims:
        apart = _apart(found, claim)
        rows.append([claim.says, claim.paper, spread(apart, sign=True), verdict(apart)])
    return _table(["claim", "in the paper", "difference in loss here", "seeds that say so"], rows)


def _apart(found: Found, claim: Claim) -> list[float]:
    return differences(losses(found, claim.lower), losses(found, claim.than))


def spread(values: Iterable[float], *, sign: bool = False) -> str:
    """Mean ± standard deviation; of one value the value alone, of none a dash."""
    many = list(values)
    if not many:
        return "–"
    mean = f"{statistics.mean(many):{'+' if sign else ''}.4f}"
    return f"{mean} ± {statistics.stdev(many):.4f}" if len(many) > 1 else mean


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--study", type=Path, default=Path("benchmarks/study.toml"))
    parser.add_argument("--figures", type=Path, help="folder to draw into (needs matplotlib)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
