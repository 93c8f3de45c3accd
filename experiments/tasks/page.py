"""Write the part of the results page on tasks: claims, outcomes, errors, accuracy by n, the dial, and forks."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.runner.arms import about, operations, power, rate, tuning
from experiments.runner.comparison import Comparison
from experiments.runner.found import REGULAR, Found
from experiments.runner.intervals import t_interval
from experiments.runner.made import names
from experiments.runner.markdown import NONE, Unit, claims, figure, table
from experiments.runner.outcomes import outcome_table
from experiments.runner.plan import Result, Study
from experiments.tasks.compare import CHANCE, Analysed, analysed, answers_no_deep_task, compare, not_learned
from experiments.tasks.measure import GROUPS, HARDEST, OWN
from experiments.tasks.outcomes import noise_and_hard, readings
from thoughtbubbles.training.synthetic import DEEP, TASKS, WIDE

POINTS = Unit("percentage points", 100, 1)
FORKS = Unit("forks a token", 1, 2)
ARMS = {
    "regular": "no forks, and no scores",
    "scores": "scores and attenuation, and no fork survives (κ = L)",
    "1.25l": "at most 1.25 streams a token on average",
    "2l": "at most 2 streams a token",
    "2l-noise": "`2l` with Gumbel noise on the selection in training, falling to 0",
    "4l": "at most 4 streams a token; every batch of training draws its ratio from 1 to 4",
    "copy-3": "three streams for every token from the start",
    "loop-2": "the six layers twice with the same weights: the operations of `2l`",
    "loop-3": "the six layers three times",
}
CLAIMS = """\
Share of wrong answers of the first side less that of the second, in percentage points; below 0 the first is better.
An answer is wrong if one of its tokens has not the highest logit. Each task and each n counts alike. The t interval
is over seeds, all of which answer the same questions: it says nothing of other questions. p is two-sided and
corrected by Holm over the claims that have one. A claim *holds* if p < 0.05 and the difference is below 0. A
difference below 2 points is called small. A verdict is *provisional* if it would change should the planned claims
that are not measured yet count in the correction too."""
ERRORS = """\
Wrong answers in percent, mean over seeds: n from 1 to 8, which was trained / n from 9 to 16, which was not.
Operations are those of learning from a token, as a multiple of `regular`'s. A rate marked ! is at an end of the
grid."""
ACCURACY = (
    "Right answers in percent at the model's own ratio, mean over seeds, by n. *Chance* is a guess at the answer."
)
DIAL = """\
Wrong answers in percent by `fork_ratio`, mean over seeds. Easy is n of 1 and 2, hard 5 to 8, beyond 9 to 16. All arms
but `4l` learned at a single ratio."""
INSIDE = """\
For n from 1 to 4 / 5 to 8 / 9 to 16, mean over seeds, at the model's own ratio under `causal`: forks (streams beside
the original after the last fork layer) of a segment's tokens, and forks and entropy where its answer is predicted."""
NOISE = """\
Forks where noise is predicted, which has the highest entropy and nothing to compute, beside forks where hard
answers are (wide and deep tasks, n from 5 to 8), mean over seeds ± standard deviation. This describes; no claim
rests on it."""
SHOWS = {
    "errors": "Wrong answers by arm: every seed, and the 95% t interval of the mean",
    "accuracy": "Right answers of `4l` by n, at each `fork_ratio`, mean over seeds",
    "forks": "Forks where an answer is predicted, by task and n, mean over seeds",
}
SHOWN_N = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)


def figure_names(size: str, found: Found) -> dict[str, str]:
    """Return the file names of the figures that a size's results allow."""
    drawn = {"errors": True, "accuracy": "4l" in found, "forks": bool({"2l", "4l"} & found.keys())}
    return {name: f"tasks-{size}-{name}.png" for name, is_drawn in drawn.items() if is_drawn}


def section(study: Study, size: str, found: Found, results: Sequence[Result]) -> list[str]:
    """Return the parts of a size's section."""
    at = analysed(study, size, found)
    comparisons, forking = compare(study, size, at.found), _forking(found)
    images = {name: figure(file, f"{SHOWS[name]}, {size}") for name, file in figure_names(size, found).items()}
    parts = [
        f"### {size}: {about(found)}", f"#### Claims at {size}", _seeds(at), claims(comparisons, POINTS), CLAIMS,
        power(comparisons), *_not_learned(at, comparisons), f"#### What the plan says of this at {size}",
        outcome_table(readings(at, comparisons)), f"#### Errors at {size}", _errors(study, size, found, results),
        ERRORS, images["errors"], f"#### Learning rates at {size}", tuning(study, size, results),
        f"#### Accuracy by difficulty at {size}", *_accuracy(found), *_images(images, "accuracy"),
    ]  # fmt: skip
    if forking:
        parts += [
            f"#### The dial at {size}", _dial(forking), DIAL, f"#### Where models fork at {size}", _inside(forking),
            INSIDE, *_images(images, "forks"), _noise(at, forking), NOISE,
        ]  # fmt: skip
    return parts


def _images(images: Mapping[str, str], name: str) -> list[str]:
    return [images[name]] if name in images else []


def _seeds(at: Analysed) -> str:
    if not at.seeds:
        return "The arms of the first stage share no seed yet, so that no claim is judged."
    left = f" Measured and in no claim: {names(at.left_out)}." if at.left_out else ""
    seeds = ", ".join(map(str, at.seeds))
    return f"Claims are judged on the seeds that every arm in them has: {seeds}{_of_planned(at)}.{left}"


def _of_planned(at: Analysed) -> str:
    return "" if len(at.seeds) == at.planned else f" ({at.planned} seeds are planned)"


def _not_learned(at: Analysed, comparisons: Sequence[Comparison]) -> list[str]:
    lines = [
        f"- {each.claim.says}: `{'`, `'.join(tasks)}` was not learned at this size."
        for each in comparisons if (tasks := not_learned(at.found, each.claim))
    ]  # fmt: skip
    parts = [f"`{REGULAR}` answers these no better than chance at n = 1:\n\n" + "\n".join(lines)] if lines else []
    if answers_no_deep_task(at.found):
        parts.append("No arm answers deep tasks of n = 2 better than chance: the plan asks for a longer horizon.")
    return parts


def _errors(study: Study, size: str, found: Found, results: Sequence[Result]) -> str:
    rows = []
    for arm, seeds in found.items():
        errors = [result["errors"][OWN] for result in seeds.values()]
        pairs = [(_percent(e[group] for e in errors), _percent(e[f"{group}-beyond"] for e in errors))
                 for group in GROUPS]  # fmt: skip
        rows.append([f"`{arm}`", rate(study, size, arm, results), operations(found, seeds), str(len(seeds)),
                     *(" / ".join(pair) for pair in pairs)])  # fmt: skip
    return table(["arm", "rate", "operations", "seeds", *GROUPS], rows)


def _accuracy(found: Found) -> list[str]:
    rows = [
        [task, f"`{arm}`", *(_percent(run["accuracy"][OWN][task][n - 1] for run in seeds.values()) for n in SHOWN_N),
         f"{100 * CHANCE[task]:.1f}"]
        for task in (*WIDE, *DEEP) for arm, seeds in found.items()
    ]  # fmt: skip
    return [table(["task", "arm", *(f"n = {n}" if n == 1 else str(n) for n in SHOWN_N), "chance"], rows), ACCURACY]


def _dial(forking: Found) -> str:
    rows = []
    for arm, seeds in forking.items():
        results = list(seeds.values())
        for ratio in (each for each in results[0]["errors"] if each != OWN):
            errors = [result["errors"][ratio] for result in results]
            rows.append([f"`{arm}`", ratio, *(_percent(e[f"{group}-{of}"] for e in errors) for group in ("wide", "deep")
                                              for of in ("easy", "hard", "beyond"))])  # fmt: skip
    heads = [f"{group}, {of}" for group in ("wide", "deep") for of in ("easy", "hard", "beyond")]
    return table(["arm", "ratio", *heads], rows)


def _inside(forking: Found) -> str:
    ranges = (slice(0, 4), slice(4, 8), slice(8, HARDEST))
    rows = [
        [f"`{arm}`", task, *(" / ".join(_mean_of(list(seeds.values()), name, task, of) for of in ranges)
                             for name in ("forks", "answer_forks", "answer_entropy"))]
        for arm, seeds in forking.items() for task in TASKS
    ]  # fmt: skip
    return table(["arm", "task", "forks a token", "forks at answers", "entropy at answers, nats"], rows)


def _noise(at: Analysed, forking: Found) -> str:
    rows = []
    for arm in forking:
        if pairs := noise_and_hard(at, arm):
            apart = [noise - hard for noise, hard in pairs]
            rows.append((f"`{arm}`", str(len(pairs)), FORKS.spread(noise for noise, _ in pairs),
                         FORKS.spread(hard for _, hard in pairs), FORKS.spread(apart, sign=True),
                         FORKS.interval(t_interval(apart))))  # fmt: skip
    return table(("arm", "seeds", "noise", "hard answers", "difference", "t interval"), rows)


def _forking(found: Found) -> Found:
    """Return the arms whose budget leaves room for forks."""
    models = {arm: next(iter(seeds.values()))["settings"]["model"] for arm, seeds in found.items()}
    return {arm: found[arm] for arm, model in models.items()
            if model["fork_layers"] and model["max_block_size"] > model["block_size"]}  # fmt: skip


def _mean_of(results: Sequence[Result], name: str, task: str, of: slice) -> str:
    values: list[Any] = [value for result in results for value in result["inside"][name][task][of] if value is not None]
    return f"{statistics.mean(values):.2f}" if values else NONE


def _percent(values: Iterable[float | None]) -> str:
    present = [value for value in values if value is not None]
    return f"{100 * statistics.mean(present):.1f}" if present else NONE
