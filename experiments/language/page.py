"""Write the part of the results page on language: claims, outcomes, arms, rates, the dial, rules and layers."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.language.compare import compare, differences, gaps_by_tokens
from experiments.language.outcomes import caveats, readings
from experiments.language.places import read_places
from experiments.language.syntax import by_place
from experiments.runner.arms import about, operations, power, rate, tuning
from experiments.runner.found import REGULAR, Found
from experiments.runner.markdown import NONE, Unit, claims, figure, table
from experiments.runner.outcomes import outcome_table
from experiments.runner.plan import Result, Study

NATS = Unit("nats a token", 1, 4)
ARMS = {
    "regular": "no forks, and no scores",
    "deeper": "a regular model with as many more layers as make its operations those of `2l`",
    "scores": "fork layers compute scores that weigh attention and updates, and no fork survives (κ = L)",
    "1.25l": "at most 1.25 streams a token on average (κ = 1.25L)",
    "2l": "at most 2 streams a token (κ = 2L)",
    "4l": "at most 4 streams a token (κ = 4L)",
    "random": "`2l` whose forks are chosen at random; scores weigh as before",
    "twice": "`2l` with two streams for every token from layer 3 on, whatever it is",
    "copy-3": "three streams for every token from the start, without scores",
    "late": "`2l` with forks before layers 7 and 11 only",
    "early": "`2l` with forks before layers 2, 5 and 8",
    "keep": "`2l` whose streams start with a weight P of 0.98, not 0.5",
    "scores-keep": "`scores` with the same start",
}
CLAIMS = """\
Difference in loss (nats a token, 0.01 is 1% of perplexity) on the held-out documents under `causal`, the rule that
is served; below 0 the first arm is better. The t interval is of the seeds of this pair alone; *by documents*
resamples the held-out documents, paired and weighted by their tokens. p is two-sided and corrected by Holm. A claim
*holds* if p < 0.05 and the documents' interval is below 0; it is *equal to within 0.01* if the t interval lies
within ±0.01; otherwise it is *open*. A difference below 0.01 is called small. A verdict is *provisional* if it would
change should the planned claims that are not measured yet count in the correction too."""
OUTCOMES = """\
*Open* means that these runs do not decide, not that there is no difference. A row is read when each of its claims
has all planned seeds. Where none of the first three rows is found though all are read, the plan foresaw no such
outcome, and the claims stand for themselves."""
COSTS = """\
Each arm at its own learning rate; ± is the standard deviation over seeds. Operations are those of learning from a
token, as a multiple of `regular`'s. *Other* is Python code, which no arm learned from. A rate marked ! is at an end
of the grid, so that a better one may lie beyond."""
GAPS = "Values of the figure: loss less that of `regular` by tokens learned from, rule `blockwise`, mean over seeds."
FIRST = (0, 1, 2)
"""Seeds that were planned before any run; the plan says when others were added."""
ADDED = """\
Seeds 3 and 4 of four arms were added to the plan when seeds 0, 1 and 2 of these had been seen. By those three alone
the same claims would read so, with the correction over the claims that they measure:"""
SEEDS = "Loss of every reported run, by seed. No run is left out, whatever its loss."
DIAL = "One model of each arm under other budgets than its own, rule `causal`, first seed."
RULES = """\
The four rules at the same positions, each predicted from the tokens before it, first seed. Compare within a row
alone: the positions are too few to compare arms."""
LAYERS = """\
On the first held-out windows under `causal`, first seed: streams a token that leave each fork layer, their part of
the budget, and the mean weight P = exp(c) of originals and of forks."""
ENTROPY = """\
Forks of a token (streams beside the original after the last fork layer) in four parts of equally many tokens, from
those after which a regular model is surest to those after which it is least sure, and the rank correlation of forks
with the regular model's entropy, first seed. This describes; no claim rests on it."""
SHOWS = {
    "differences": "Loss less that of `regular`: every seed, and the 95% t interval of the mean",
    "curves": "Gap to `regular` by tokens learned from, rule `blockwise`, mean over seeds",
    "dial": "Loss at each `fork_ratio` under `causal`, first seed",
    "forks": "Streams beside the original by the entropy of a regular model after the token, first seed",
}


def figure_names(size: str, found: Found) -> dict[str, str]:
    """Return the file names of the figures that a size's results allow."""
    shown = []
    if any(differences(found, arm, REGULAR) for arm in found if arm != REGULAR):
        shown += ["differences", "curves"]
    if detailed(found):
        shown += ["dial"]
    if forking(found) and regular_entropy(found) is not None:
        shown += ["forks"]
    return {name: f"language-{size}-{name}.png" for name in shown}


def detailed(found: Found) -> dict[str, Result]:
    """Return of each arm that forks the run whose dial, rules and forks were measured."""
    return {arm: run for arm, seeds in found.items() for run in seeds.values() if run.get("dial")}


def forking(found: Found) -> dict[str, Result]:
    """Return those of them whose budget leaves room for forks."""
    return {arm: run for arm, run in detailed(found).items() if forks_of(run).any()}


def section(study: Study, size: str, found: Found, results: Sequence[Result]) -> list[str]:
    """Return the parts of a size's section."""
    comparisons, drawn = compare(study, size, found), figure_names(size, found)
    images = {name: figure(file, f"{SHOWS[name]}, {size}") for name, file in drawn.items()}
    parts = [
        f"### {size}: {about(found)}", f"#### Claims at {size}", claims(comparisons, NATS), CLAIMS,
        power(comparisons), *caveats(found), *_first_seeds(study, size, found),
        f"#### What the plan says of this at {size}",
        outcome_table(readings(study, size, found, comparisons)), OUTCOMES, *_images(images, "differences", "curves"),
        *_curves(found), f"#### Arms at {size}", _arms(study, size, found, results), COSTS, _by_seed(found), SEEDS,
        f"#### Learning rates at {size}", tuning(study, size, results),
    ]  # fmt: skip
    if inside := detailed(found):
        parts += [
            f"#### Dial, rules, layers and entropy at {size}", _dial(inside), DIAL, *_images(images, "dial"),
            _rules(inside), RULES, _layers(inside), LAYERS, *_entropy(found), *_images(images, "forks"),
        ]  # fmt: skip
    return parts


def _curves(found: Found) -> list[str]:
    rows = []
    for arm in (each for each in found if each != REGULAR):
        gaps = gaps_by_tokens(found, arm)
        if gaps:
            rows.append((f"`{arm}`", *(NATS.signed(gap) for gap in gaps.values())))
            tokens = [f"{each:.1f}M" for each in gaps]
    return [table(("arm, after", *tokens), rows), GAPS] if rows else []


def _entropy(found: Found) -> list[str]:
    entropy = regular_entropy(found)
    if entropy is None or not forking(found):
        return []
    parts = np.array_split(np.argsort(entropy, kind="stable"), 4)
    rows = []
    for arm, run in forking(found).items():
        forks = forks_of(run)
        tied = len(set(forks.tolist())) == 1
        rank = NONE if tied else f"{stats.spearmanr(forks, entropy).statistic:+.2f}"
        rows.append((f"`{arm}`", *(f"{forks[part].mean():.2f}" for part in parts), rank))
    heads = ("arm", "surest", "second", "third", "least sure", "correlation")
    counts = {arm: forks for arm, run in forking(found).items() if np.ptp(forks := forks_of(run))}
    return [table(heads, rows), ENTROPY, *by_place(read_places(), entropy, counts)]


def regular_entropy(found: Found) -> NDArray[np.float64] | None:
    """Return the entropy in nats of the regular model after each kept token; None where it was not measured."""
    kept = [run["inside"]["entropy"] for run in found.get(REGULAR, {}).values() if "inside" in run]
    return np.concatenate([np.array(window) for window in kept[0]]) / 100 if kept else None


def forks_of(run: Result) -> NDArray[np.int64]:
    """Return the forks of each kept token."""
    return np.array([int(digit) for digit in "".join(run["inside"]["forks"])])


def _images(images: Mapping[str, str], *names: str) -> list[str]:
    return [images[name] for name in names if name in images]


def _arms(study: Study, size: str, found: Found, results: Sequence[Result]) -> str:
    rows = []
    for arm, seeds in found.items():
        runs = list(seeds.values())
        rows.append((
            f"`{arm}`", rate(study, size, arm, results), f"{runs[0]['parameters'] / 1e6:.1f}M",
            operations(found, seeds), str(len(runs)),
            NATS.spread(run["loss"] for run in runs), NATS.spread(run["blockwise"] for run in runs),
            NATS.spread(run["other"]["loss"] for run in runs),
            NONE if arm == REGULAR else NATS.spread(differences(found, arm, REGULAR).values(), sign=True),
        ))  # fmt: skip
    heads = ("arm", "rate", "parameters", "operations", "seeds", "loss", "`blockwise`", "other", f"less `{REGULAR}`")
    return table(heads, rows)


def _first_seeds(study: Study, size: str, found: Found) -> list[str]:
    """Return the claims that have seeds beyond the first, judged by the first alone."""
    first = {arm: {seed: run for seed, run in of.items() if seed in FIRST} for arm, of in found.items()}
    more = [{*differences(found, claim.lower, claim.than)} - {*FIRST} for claim in study.claims]
    judged = [each for each, added in zip(compare(study, size, first), more, strict=True) if added]
    return [ADDED, claims(judged, NATS)] if judged else []


def _by_seed(found: Found) -> str:
    seeds = sorted({seed for of in found.values() for seed in of})
    rows = [(f"`{arm}`", *(f"{of[seed]['loss']:.4f}" if seed in of else NONE for seed in seeds)) for arm, of in
            found.items()]  # fmt: skip
    return table(("arm", *(f"seed {seed}" for seed in seeds)), rows)


def _dial(inside: Mapping[str, Result]) -> str:
    ratios = list(next(iter(inside.values()))["dial"])
    rows = [(f"`{arm}`", *(f"{run['dial'][ratio]:.4f}" for ratio in ratios)) for arm, run in inside.items()]
    return table(("arm, at ratio", *ratios), rows)


def _rules(inside: Mapping[str, Result]) -> str:
    rules = list(next(iter(inside.values()))["rules"])
    rows = [(f"`{arm}`", *(f"{run['rules'][rule]:.4f}" for rule in rules)) for arm, run in inside.items()]
    return table(("arm", *(f"`{rule}`" for rule in rules)), rows)


def _layers(inside: Mapping[str, Result]) -> str:
    rows = []
    for arm, run in inside.items():
        means = {(row["layer"], row["streams"]): row.get("mean") for row in run["inside"]["scores"]}
        for row in run["inside"]["budget"]:
            own = [means.get((row["layer"], streams)) for streams in ("originals", "forks")]
            rows.append((
                f"`{arm}`", str(row["layer"]), f"{row['streams'] / row['tokens']:.2f}",
                f"{row['streams'] / row['budget']:.0%}", *(NONE if mean is None else f"{mean:.3f}" for mean in own),
            ))  # fmt: skip
    return table(("arm", "layer", "streams a token", "of the budget", "P of originals", "P of forks"), rows)
