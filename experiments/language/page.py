"""Write the page of the study's results in Markdown: tables, one section a size."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.language.compare import Comparison, Found, compare, differences
from experiments.runner.intervals import Interval
from experiments.runner.plan import Result, Study

REGULAR = "regular"
"""The arm that every other is compared with."""


class Made(NamedTuple):
    """How the page was made."""

    results: str
    """Path of the results file from the page's folder."""
    command: str
    """Command that writes the page."""


INTRODUCTION = """\
{runs} reported runs and {tuning} that chose learning rates; {machine}; torch {torch}; {date}; {hours:.1f} hours of
processes that shared a device. The plan was written before the runs: [language.md](experiments/language.md). Every
result is a line of [{file}]({results}). The first command trains and measures, the second writes this page:

    python -m experiments.language.study
    {command}"""

CLAIMS = """\
Difference in loss (nats a token) on the held-out documents under `causal`, the first arm less the second: below 0 the
first is better. The t interval is of the seeds of this pair alone, the second one resamples documents; p is corrected
by Holm over the claims that were measured at this size. A claim *holds* if p < 0.05 and the documents' interval is
below 0."""

ARMS = """\
Each arm at its own learning rate; ± is the standard deviation over seeds. Operations are those of learning from a
token, as a multiple of `regular`'s. *Other* is text of another domain. A rate marked ! is at an end of the grid."""

TUNING = "Loss on the tuning split after the short horizon, by learning rate; × diverged."
DIAL = "One model under other budgets than its own, rule `causal`, first seed."
RULES = (
    "The four rules at the same positions, first seed; these losses compare with each other and with no other table."
)
LAYERS = """\
Of the first windows under `causal`, first seed: streams a token that leave each fork layer, their part of the budget,
and the mean P = exp(c) of originals and forks."""

SHOWS = {
    "curves": "Loss less that of `regular`, by tokens learned from, rule `blockwise`, mean over seeds",
    "differences": "Loss less that of `regular`: every seed, and the 95% t interval of the mean",
    "dial": "Loss at each `fork_ratio` under `causal`, first seed",
    "forks": "Streams beside the original, by the entropy of a regular model",
}


def page(
    study: Study, sizes: Mapping[str, Found], results: Sequence[Result], made: Made, figures: Sequence[str] = ()
) -> str:
    """Return the page as Markdown; `figures` are the file names of those that were drawn."""
    parts = ["# When do forks help language modelling?", _introduction(sizes, results, made)]
    for size, found in sizes.items():
        parts += _section(study, size, found, results, figures)
    return "\n\n".join(parts) + "\n"


def _section(study: Study, size: str, found: Found, results: Sequence[Result], figures: Sequence[str]) -> list[str]:
    first = next(iter(next(iter(found.values())).values()))
    model = first["settings"]["model"]
    shape = (
        f"{model['n_layer']} layers of width {model['n_embd']}, blocks of {model['block_size']} tokens,"
        f" {first['tokens'] / 1e6:.1f}M tokens of {first['settings']['data']} a run. {_unfinished(study, size, found)}"
    )
    claims = compare(study, found)
    parts = [
        f"## {size}", shape.rstrip(), f"### Claims at {size}", _count(claims), _claims(claims), CLAIMS,
        f"### Arms at {size}", _arms(study, size, found, results), ARMS, *_figure("differences", size, figures),
        *_figure("curves", size, figures), f"### Learning rates at {size}", _tuning(study, size, found, results),
        TUNING,
    ]  # fmt: skip
    if detailed := {arm: first for arm, seeds in found.items() for first in seeds.values() if first.get("dial")}:
        parts += [
            f"### Dial, rules and layers at {size}", _dial(detailed), DIAL, *_figure("dial", size, figures),
            _rules(detailed), RULES, _layers(detailed), LAYERS, *_figure("forks", size, figures),
        ]  # fmt: skip
    return parts


def _introduction(sizes: Mapping[str, Found], results: Sequence[Result], made: Made) -> str:
    runs = [result for found in sizes.values() for seeds in found.values() for result in seeds.values()]
    machine, torch, date = (", ".join(sorted({str(run[key]) for run in runs})) for key in ("machine", "torch", "date"))
    return INTRODUCTION.format(
        runs=len(runs), tuning=sum(result["kind"] == "tuning" for result in results), machine=machine, torch=torch,
        date=date, hours=sum(result["seconds"] for result in results) / 3600, file=made.results.rpartition("/")[2],
        results=made.results, command=made.command,
    )  # fmt: skip


def _unfinished(study: Study, size: str, found: Found) -> str:
    planned = {
        (arm, seed) for stage in study.stages if stage.size == size for arm in stage.arms for seed in stage.seeds
    }
    missing = sorted(planned - {(arm, seed) for arm, seeds in found.items() for seed in seeds})
    names = ", ".join(f"`{arm}` {seed}" for arm, seed in missing)
    return f"Planned and not run (arm and seed): {names}." if missing else ""


def _count(claims: Sequence[Comparison]) -> str:
    words = Counter(each.word for each in claims)
    return f"Of {len(claims)} claims: " + ", ".join(f"{count} {word}" for word, count in words.items()) + "."


def _claims(claims: Sequence[Comparison]) -> str:
    rows = [
        (
            each.claim.says, f"`{each.claim.lower}` − `{each.claim.than}`", f"{each.mean:+.4f}" if each.apart else "–",
            _interval(each.interval), _interval(each.documents), "–" if each.p is None else f"{each.p:.3f}",
            f"{sum(apart < 0 for apart in each.apart)} of {len(each.apart)}", each.word,
        )
        for each in claims
    ]  # fmt: skip
    heads = ("claim", "difference of", "mean", "t interval", "by documents", "p (Holm)", "seeds below 0", "the claim")
    return _table(heads, rows)


def _arms(study: Study, size: str, found: Found, results: Sequence[Result]) -> str:
    regular = found.get(REGULAR, {})
    base = next(iter(regular.values()))["flops_per_token"] if regular else None
    rows = []
    for arm, seeds in found.items():
        runs = list(seeds.values())
        losses = [run["loss"] for run in runs]
        cost = "–" if base is None else f"{runs[0]['flops_per_token'] / base:.2f}"
        rows.append((
            f"`{arm}`", _rate(study, size, arm, results), f"{runs[0]['parameters'] / 1e6:.1f}M", cost, str(len(runs)),
            _spread(losses), _spread([run["blockwise"] for run in runs]),
            _spread([run["other"]["loss"] for run in runs]),
            _spread(differences(found, arm, REGULAR).values(), sign=True),
        ))  # fmt: skip
    heads = ("arm", "rate", "parameters", "operations", "seeds", "loss", "`blockwise`", "other", f"less `{REGULAR}`")
    return _table(heads, rows)


def _rate(study: Study, size: str, arm: str, results: Sequence[Result]) -> str:
    rates = sorted(run.training.learning_rate for run in study.tuning_runs(size, arm))
    best = study.best_rate(size, arm, results)
    return f"{best:g}{' !' if best in (rates[0], rates[-1]) else ''}"


def _tuning(study: Study, size: str, found: Found, results: Sequence[Result]) -> str:
    losses: dict[str, dict[float, float | None]] = {}
    for arm in found:
        for run in study.tuning_runs(size, arm):
            result = next(filter(run.is_of, results))
            losses.setdefault(arm, {})[run.training.learning_rate] = result["loss"]
    rates = list(next(iter(losses.values())))
    rows = [(f"`{arm}`", *("×" if x is None else f"{x:.4f}" for x in of.values())) for arm, of in losses.items()]
    return _table(("arm", *(f"{rate:g}" for rate in rates)), rows)


def _dial(detailed: Mapping[str, Result]) -> str:
    ratios = list(next(iter(detailed.values()))["dial"])
    rows = [(f"`{arm}`", *(f"{run['dial'][ratio]:.4f}" for ratio in ratios)) for arm, run in detailed.items()]
    return _table(("arm", *ratios), rows)


def _rules(detailed: Mapping[str, Result]) -> str:
    rules = list(next(iter(detailed.values()))["rules"])
    rows = [(f"`{arm}`", *(f"{run['rules'][rule]:.4f}" for rule in rules)) for arm, run in detailed.items()]
    return _table(("arm", *(f"`{rule}`" for rule in rules)), rows)


def _layers(detailed: Mapping[str, Result]) -> str:
    rows = []
    for arm, run in detailed.items():
        means = {(row["layer"], row["streams"]): row.get("mean") for row in run["inside"]["scores"]}
        for row in run["inside"]["budget"]:
            own = [means.get((row["layer"], streams)) for streams in ("originals", "forks")]
            rows.append((
                f"`{arm}`", str(row["layer"]), f"{row['streams'] / row['tokens']:.2f}",
                f"{row['streams'] / row['budget']:.0%}", *("–" if mean is None else f"{mean:.3f}" for mean in own),
            ))  # fmt: skip
    return _table(("arm", "layer", "streams a token", "of the budget", "P of originals", "P of forks"), rows)


def _figure(name: str, size: str, figures: Sequence[str]) -> list[str]:
    file = f"language-{size}-{name}.png"
    return [f"![{SHOWS[name]}, {size}](images/{file})"] if file in figures else []


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def _spread(values: Iterable[float], *, sign: bool = False) -> str:
    """Return mean ± standard deviation; of one value the value alone, of none a dash."""
    many = list(values)
    if not many:
        return "–"
    mean = f"{statistics.mean(many):{'+' if sign else ''}.4f}"
    return f"{mean} ± {statistics.stdev(many):.4f}" if len(many) > 1 else mean


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
