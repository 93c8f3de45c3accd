"""The tables of a study's page, in Markdown."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, get_args

from benchmarks.study_compare import Found, Verdict, at_positions, differences, judge, losses, spread
from benchmarks.study_plan import Claim, Study
from model.selection import Rule

WORDS = {"holds": "better", "does not hold": "worse"}
"""Of an arm beside another; else no difference is seen."""


def table_of_losses(study: Study, found: Found) -> str:
    """Every arm: what it costs, what it reaches, and how far that is from the two it is compared with."""
    peers = [losses(found, name) for name in (study.report.regular, study.report.forks)]
    rows = []
    for arm, seeds in found.items():
        own, one = losses(found, arm), next(iter(seeds.values()))
        per_byte = [result["bits_per_byte"] for result in seeds.values()]
        rows.append([
            f"`{arm}`", f"{one['parameters'] / 1e6:.1f}M", f"{one['flops_per_token'] / 1e6:.0f}M", str(len(seeds)),
            spread(own.values()), f"{math.exp(statistics.mean(own.values())):.2f}", f"{statistics.mean(per_byte):.4f}",
            *(spread(differences(own, peer), sign=True) for peer in peers),
        ])  # fmt: skip
    return _table(
        ["arm", "parameters", "operations a token", "seeds", "loss", "perplexity", "bits/byte",
         f"loss against `{study.report.regular}`", f"against `{study.report.forks}`"], rows
    )  # fmt: skip


def table_of_changes(study: Study, found: Found) -> str:
    """The arms that are the one with forks but for a setting or two, and what that does."""
    main = study.report.forks
    rows = []
    for arm in found:
        if arm not in {*study.report.cost, main}:
            told = judge(found, Claim(says="", lower=arm, than=main, paper=""))
            rows.append([f"`{arm}`", _changes(study, arm), difference(told), _seeds(told), _word(told)])
    return _table(["arm", "changed", f"loss against `{main}`", "seeds", "it is"], rows)


def table_of_rules(found: Found) -> str:
    """Mean losses at the sampled positions, and how far each rule is from `blockwise` in the same model."""
    rules = get_args(Rule)
    rows = []
    for arm, seeds in found.items():
        if len(next(iter(seeds.values()))["rules"]) < len(rules):
            continue
        by_rule = {rule: at_positions(found, arm, rule) for rule in rules}
        means = [f"{statistics.mean(by_rule[rule].values()):.4f}" for rule in rules]
        apart = [spread(differences(by_rule[rule], by_rule["blockwise"]), sign=True) for rule in rules[1:]]
        rows.append([f"`{arm}`", *means, *apart])
    return _table(["arm", *(f"`{rule}`" for rule in rules), *(f"`{rule}` − `blockwise`" for rule in rules[1:])], rows)


def table_of_dial(study: Study, found: Found) -> str:
    """Loss under `causal` at each ratio."""
    rows, ratios = [], list[str]()
    for arm in study.report.dial:
        if dials := [result["dial"] for result in found.get(arm, {}).values() if result["dial"]]:
            ratios = list(dials[0])
            rows.append([f"`{arm}`", *(spread(dial[ratio] for dial in dials) for ratio in ratios)])
    return _table(["arm, at ratio", *ratios], rows)


def table_of_claims(study: Study, found: Found) -> str:
    """What the paper says, and whether it is so here."""
    judged = [(claim, judge(found, claim)) for claim in study.claims]
    rows = [[claim.says, claim.paper, difference(told), _seeds(told), told.word] for claim, told in judged]
    return _table(["claim", "in the paper", "difference in loss here", "seeds that say so", "here it"], rows)


def difference(told: Verdict) -> str:
    """Mean and its standard error."""
    if not told.apart:
        return "–"
    error = "" if told.error is None else f" ± {told.error:.4f}"
    return f"{statistics.mean(told.apart):+.4f}{error}"


def _seeds(told: Verdict) -> str:
    return f"{sum(each < 0 for each in told.apart)} of {len(told.apart)}"


def _word(told: Verdict) -> str:
    return WORDS.get(told.word, told.word)


def _changes(study: Study, arm: str) -> str:
    """The settings in which an arm is not the one with forks."""
    own, main = (_settings(study, name) for name in (arm, study.report.forks))
    return ", ".join(f"`{key} = {_plain(value)}`" for key, value in own.items() if value != main[key])


def _settings(study: Study, arm: str) -> dict[str, Any]:
    run = next(run for run in study.runs if run.arm == arm)
    told = {**run.model.to_dict(), **run.training.to_dict()}
    return {key: value for key, value in told.items() if key != "seed"}


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
