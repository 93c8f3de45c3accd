"""Write the part of the results page on the shipped checkpoint: the decision, the twins, the dial, the short runs."""

from collections.abc import Sequence
from pathlib import Path

from experiments.checkpoint.decide import NEW, PLAIN, REPORTED, WORTH, Criterion, chosen, compare, criteria
from experiments.checkpoint.measure import Evaluation
from experiments.language.compare import differences
from experiments.language.outcomes import sentences
from experiments.runner.arms import about, rate, short_loss, tuning
from experiments.runner.found import REGULAR, Found, by_arm
from experiments.runner.made import made, not_run
from experiments.runner.markdown import NONE, Unit, claims, table
from experiments.runner.plan import Result, Study, read_study

NATS = Unit("nats a token", 1, 4)
RATES = ("rates", "rates-longer")
"""The sizes whose short runs learned at several rates: 200 steps, and 600, which choose the rate of reported runs."""
ARMS = {
    "2l": "at most 2 streams a token (κ = 2L), as the shipped checkpoint has it",
    "regular": "no forks, and no scores",
    "scores": "scores and attenuation, and no fork survives (κ = L)",
    "drawn": "`2l`; every batch of training draws its ratio from 1 to 2",
}
INTRODUCTION = """\
## Part 3: the shipped checkpoint

Is there a better checkpoint of the same size, and do its forks make it better? By a
[plan](experiments/checkpoint.md) that was written before any run, a new one takes the place of the present one if it
predicts the reported text better, and is no worse on WordNet's definitions and at agreement of subject and verb."""
PREPARE = (
    "python -m experiments.checkpoint.data --english corpus --code corpus-code --wordnet /usr/share/wordnet"
    " --agreement subject_verb_agreement.jsonl --tokenizer checkpoints/thoughtbubbles-11m/tokenizer.tiktoken"
)
COMMANDS = (
    PREPARE,
    "python -m experiments.checkpoint.study",
    "python -m experiments.checkpoint.present",
    "python -m experiments.report --write",
)
CHOICES = {
    "`2l`": ("choice", PLAIN),
    "`drawn`: the ratio drawn": ("choice", NEW),
    "`2l`, prose from code mixed into the text": ("choice-mixed", PLAIN),
}
"""What the short runs compare: a size and an arm each."""
DECISION = {
    True: "All hold: by the plan the new checkpoint takes the place of the present one.",
    False: "Not all hold: by the plan the present checkpoint stays.",
}
CLAIMS = """\
Difference in loss (nats a token) on the reported documents under `causal`, one pair of runs each; below 0 the first
arm is better. *By documents* resamples the documents. With one seed nothing is tested: two equal runs differ by up to
0.002, and seeds by more."""
RUNS = """\
*Present* is the checkpoint that was in the repository when the study was made. All are computed in float32 from weights
in bfloat16, rule `causal`. Bits per byte of the reported text, of WordNet's definitions and of Python; agreement is the
share of pairs in which the right verb is likelier. A rate marked ! is at an end of the grid."""
WORDS = {"These conditions hold": True, "These do not": False}
"""What comes before the conditions that hold, and before the others."""
SAYINGS = {
    (NEW, REGULAR, "loss"): ("models with forks and a ratio that was drawn", "regular ones"),
    (NEW, "scores", "loss"): ("models with forks and a ratio that was drawn", "models that score forks and make none"),
    ("scores", REGULAR, "loss"): ("models that score forks and make none", "regular ones"),
}
"""Of a claim, its two sides in words."""
DIAL = "Loss on the reported text under other budgets than the model's own."


def part(results: Sequence[Result], present: Result | None) -> tuple[str, list[str]]:
    """Return what the page says in short and in full of the committed study, and of the present checkpoint."""
    study = read_study(Path(__file__).with_name("study.toml"), Evaluation)
    return in_short(study, results, present), section(study, results, present)


def in_short(study: Study, results: Sequence[Result], present: Result | None) -> str:
    """Return the decision in a paragraph, and what was found of the twins in sentences."""
    found = by_arm(study, REPORTED, results)
    if NEW not in found or present is None:
        return "**The shipped checkpoint.** Not measured yet: no reported run has been made."
    rules = criteria(found[NEW][min(found[NEW])], present)
    said = "".join(f" {word}: {named}." for word, holds in WORDS.items() if (named := _named(rules, holds)))
    bullets = [f"- {sentence}" for sentence in sentences(compare(study, found), SAYINGS)]
    decided = DECISION[all(rule.holds for rule in rules)]
    head = f"**A new checkpoint of the shipped shape, {about(found)}.** {decided}{said}"
    return "\n\n".join([head, "\n".join(bullets)])


def _named(rules: Sequence[Criterion], holds: bool) -> str:
    """Return the conditions that hold, or those that do not, with their numbers."""
    beside = {rule: f", present {rule.present}" if rule.present else "" for rule in rules}
    return "; ".join(f"{rule.says} ({rule.new}{beside[rule]})" for rule in rules if rule.holds == holds)


def section(study: Study, results: Sequence[Result], present: Result | None) -> list[str]:
    """Return the parts of the section."""
    arms = "\n".join(f"- `{arm}`: {ARMS[arm]}" for arm in study.arms)
    link = "[checkpoint.jsonl](../benchmarks/results/checkpoint.jsonl)"
    parts = [INTRODUCTION, f"The arms:\n\n{arms}", made(study, results, COMMANDS, link)]
    found = by_arm(study, REPORTED, results)
    lacking = [f"Not run:\n\n{not_run(study, results)}"] if results else []
    return [*parts, *_reported(study, found, results, present), *_short(study, results), *lacking]


def _reported(study: Study, found: Found, results: Sequence[Result], present: Result | None) -> list[str]:
    if not found:
        return []
    parts = [f"### {about(found)}"]
    if NEW in found and present is not None:
        parts += ["#### Which checkpoint is shipped", *_decision(found[NEW][min(found[NEW])], present)]
    return [
        *parts, "#### The runs", _runs(study, found, results, present), RUNS, claims(compare(study, found), NATS),
        CLAIMS, _dial(found, present), DIAL,
    ]  # fmt: skip


def _decision(new: Result, present: Result) -> list[str]:
    rules = criteria(new, present)
    rows = [(each.says, each.new, each.present, "yes" if each.holds else "**no**") for each in rules]
    return [table(("condition", "new", "present", "holds?"), rows), DECISION[all(each.holds for each in rules)]]


def _runs(study: Study, found: Found, results: Sequence[Result], present: Result | None) -> str:
    rows = [("present", NONE, *_cells(present), NONE)] if present is not None else []
    for arm, seeds in found.items():
        for seed, run in seeds.items():
            apart = {} if arm == REGULAR else differences(found, arm, REGULAR)
            less = NATS.signed(apart[seed]) if seed in apart else NONE
            rows.append((f"`{arm}`, seed {seed}", rate(study, REPORTED, arm, results), *_cells(run), less))
    heads = ("checkpoint", "rate", "loss", "bits per byte", "definitions", "Python", "agreement", f"less `{REGULAR}`")
    return table(heads, rows)


def _cells(run: Result) -> tuple[str, ...]:
    bits = [each["bits_per_byte"] for each in (run, run["other"], run["code"])]
    return (f"{run['loss']:.4f}", *(f"{each:.4f}" for each in bits), f"{run['agreement']['all']:.3f}")


def _dial(found: Found, present: Result | None) -> str:
    named = [("present", present)] if present is not None else []
    named += [(f"`{arm}`", run) for arm, seeds in found.items() for run in seeds.values() if run["dial"]]
    ratios = list(named[0][1]["dial"]) if named and named[0][1] is not None else []
    rows = [(name, *(f"{run['dial'][ratio]:.4f}" for ratio in ratios)) for name, run in named if run is not None]
    return table(("at ratio", *ratios), rows)


def _short(study: Study, results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    took, words = chosen(study, results), {True: "is taken", False: "is not taken", None: "is not decided"}
    runs = [(says, study.tuning_runs(*named)[0]) for says, named in CHOICES.items()]
    losses = [(says, f"{run.tokens / 1e6:.0f}M", short_loss(run.find(results))) for says, run in runs]
    said = (
        f"Loss on the tuning split, rate 4e-3. By the plan a drawn ratio {words[took['drawn']]} (it may cost {WORTH}"
        f" nats), and mixed text {words[took['mixed']]} (it may cost nothing)."
    )
    heads = ("choice", "tokens", "loss")
    rates = [part for size in RATES for part in (f"`{size}`:", tuning(study, size, results))]
    return ["#### The short runs", table(heads, losses), said, *rates]
