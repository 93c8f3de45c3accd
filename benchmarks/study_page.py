"""The page that tells what a study found."""

import textwrap
from collections import Counter

from benchmarks.study_compare import Found, Word, deviation, judge
from benchmarks.study_plan import Claim, Study
from benchmarks.study_results import Result
from benchmarks.study_tables import (
    table_of_changes,
    table_of_claims,
    table_of_dial,
    table_of_losses,
    table_of_rules,
)

COUNTED: dict[Word, str] = {
    "holds": "hold",
    "does not hold": "do not hold",
    "undecided": "are undecided",
    "not measured": "were not measured",
}

MADE = """\
{runs} runs of {arms} arms, several at a time on each device; {machine}; torch {torch}; {date}. {missing}Every setting
is in [study.toml](../benchmarks/study.toml), every result a line of [{file}]({results}). The first command trains and
measures, the second writes this page and its figures:"""

COMPARED = """\
- **Equal tokens.** Every run learns from {tokens:.1f}M tokens, and the arms of a seed from the same ones in the same
order. Equal tokens are not equal operations: a table and a figure tell what each arm costs.

- **One recipe.** All arms have learning rate {rate:g}, found for a model with forks of this width; {steps} steps of
{sequences} blocks of {block}, {warm_up} of them warm-up and {decay} decay. None was tuned for its own: an arm that
wants another rate, the larger model above all, is at a disadvantage that nobody measured.

- **Small.** `{forks}` has {parameters:.1f}M parameters in {layers} layers of width {width}, with forks before layers
{fork_layers}. The paper's models have 150M and more and learn from 2.5 billion tokens: what is open or contrary here
may hold there, and the other way round.

- **Differences are paired**, each seed against the same seed. How far they scatter over seeds is pooled over all pairs
of arms that have several{noise}, so that an arm with one seed can be judged too. A claim *holds* where every seed
says so and their mean is more than two standard errors from nothing; it *does not hold* where every seed says the
contrary, as clearly; else it is *undecided*."""

CLAIMS = """\
Losses are in nats a token, on the whole of the held-out text; a difference below nothing says that the claim's first
side is better, by so much; ± is the standard error of the mean over seeds. For a rule it is the loss in packed windows
and what the rule adds to it at the positions of the four rules below, whose choice is the same for all seeds and so no
part of the error. Of {count} comparisons one may well be called clear by chance."""

LOSSES = """\
On the whole of the held-out text, in packed windows under the rule of training, `blockwise`; ± is the standard
deviation over seeds. Operations are those of learning from a token, of the streams that are really computed
(`training/flops.py`), at the full ratio."""

CHANGES = """\
`{forks}` but for the settings beside each arm: parts of the attenuated block left out, other readouts, forks elsewhere,
Gumbel noise on the selection scores that falls to nothing over the run, a ratio drawn for every batch. ± is the
standard error, from the noise pooled as above; *seeds* are those in which the arm is better."""

RULES = """\
The paper's figure 6 as a table: {positions:,} positions of the held-out text, each predicted from what stands before it
and nothing else, the same positions for all; `blockwise`, which has no meaning without the whole block, from whole
windows. The positions are a sample: these losses compare with each other and with no other table. ± is the standard
deviation over seeds."""

DIAL = """\
One model asked for other budgets than it was trained with, under `causal`, the rule that is served, on the whole of the
held-out text. The arms `random-…` drew a ratio from 1 to their own for every batch, and so computed less in learning.
± is the standard deviation over seeds, of which an arm may have more than another."""

ELSEWHERE = """\
- **Exact resume.** [test_killed.py](../tests/training/test_killed.py) kills a training with SIGKILL at a random step on
a CPU and resumes it: the losses equal the unkilled run's bit for bit.

- **The shipped checkpoint** beside its regular twin: [its card](../checkpoints/thoughtbubbles-11m/README.md), section
*How good it is*. Both learned from 426M tokens, 26 times through the corpus; there forks help, by 3.1% of perplexity.
The recipes that were tried for it, Muon too, with what each gave:
[train-sweep.md](../benchmarks/results/train-sweep.md)."""

INSIDE = """\
What [Look inside](EVALUATION.md#look-inside) tells more of, drawn from held-out text by the command below; the text of
the map is named with it in [REPRODUCE.md](REPRODUCE.md#pictures).

    thoughtbubbles analyse checkpoints/thoughtbubbles-11m --data data/val.jsonl.gz --tokens 16384 --out analysis

![Figure 4 of the paper: what originals attend to, in all and by stream](images/analysis-attention.png)

![Figure 5: forks per token against the entropy of the next token](images/analysis-entropy.png)

![Figure 7: the forks of each token of a text in every layer](images/analysis-map.png)"""

ENTROPY_FIGURE = "study-entropy.png"
"""Of two of the study's models, which are too many to keep: drawn where they were trained."""
ENTROPY = f"""\
The paper's figure 5 has the entropy of a regular model too, which did not see the forks. Of the study's own models,
drawn where they were trained, by

    thoughtbubbles analyse {{forks}}-0/checkpoint --regular {{regular}}-0/checkpoint --data data/val.jsonl.gz

![Forks per token of the small model against its own entropy and a regular model's](images/{ENTROPY_FIGURE})"""


def page(study: Study, found: Found, results: str, command: str, *, entropy: bool = False) -> str:
    """Markdown, as it stands in `docs/`; `results` is the file that it tells of, `command` what writes it.

    `entropy` says whether there is an `ENTROPY_FIGURE`.
    """
    forks, regular = study.report.forks, study.report.regular

    def figure(name: str, shows: str) -> str:
        return f"![{shows}](images/study-{name}.png)\n\n*{shows}. Drawn by* `{command}`"

    sections = {
        "The paper's claims": [
            _count(study, found), table_of_claims(study, found), CLAIMS.format(count=len(study.claims)),
        ],
        "How it was compared": [_compared(study, found)],
        "Every arm": [
            LOSSES, table_of_losses(study, found), figure("differences", f"Loss of every run less that of `{regular}`"),
            figure("cost", "Loss against operations a token"),
        ],
        "One thing changed": [CHANGES.format(forks=forks), table_of_changes(study, found)],
        "The four rules": [
            RULES.format(positions=study.evaluation.positions), table_of_rules(found),
            figure("rules", "What each rule adds to `blockwise`"),
        ],
        "The dial, and a ratio drawn in training": [
            DIAL, table_of_dial(study, found), figure("dial", "Loss at each `fork_ratio` under `causal`"),
        ],
        **({"Forks against entropy": ENTROPY.format(forks=forks, regular=regular).split("\n\n")} if entropy else {}),
        "Inside the shipped checkpoint": INSIDE.split("\n\n"),
        "What is shown elsewhere": [ELSEWHERE],
    }  # fmt: skip
    commands = f"    python -m benchmarks.study --data data/corpus --out runs/study\n    {command}"
    parts = ["# What of the paper holds for small models", _made(study, found, results), commands]
    for heading, told in sections.items():
        parts += [f"## {heading}", *told]
    return "\n\n".join(map(_wrapped, parts)) + "\n"


def _made(study: Study, found: Found, results: str) -> str:
    runs: list[Result] = [result for seeds in found.values() for result in seeds.values()]
    machine, torch, date = (", ".join(sorted({str(run[key]) for run in runs})) for key in ("machine", "torch", "date"))
    missing = [f"`{run.name}`" for run in study.runs if run.seed not in found.get(run.arm, {})]
    return MADE.format(
        runs=len(runs), arms=len(found), machine=machine, torch=torch, date=date, results=results,
        missing=f"There was no time for {', '.join(missing)}. " if missing else "", file=results.rpartition("/")[2],
    )  # fmt: skip


def _compared(study: Study, found: Found) -> str:
    report = study.report
    run = next(run for run in study.runs if run.arm == report.forks)
    told = next(iter((found.get(run.arm) or next(iter(found.values()))).values()))
    noise = deviation(found, Claim(says="", lower=report.forks, than=report.regular, paper=""))
    return COMPARED.format(
        tokens=run.tokens / 1e6, rate=run.training.learning_rate, steps=run.training.steps,
        sequences=run.training.sequences_per_step, block=run.model.block_size, warm_up=run.training.warmup_steps,
        decay=run.training.decay_steps, forks=run.arm, parameters=told["parameters"] / 1e6, layers=run.model.n_layer,
        width=run.model.n_embd, fork_layers=", ".join(map(str, run.model.fork_layers)),
        noise="" if noise is None else f" (the standard deviation of a difference is {noise:.4f})",
    )  # fmt: skip


def _count(study: Study, found: Found) -> str:
    words = Counter(judge(found, claim).word for claim in study.claims)
    told = ", ".join(f"{words[word]} {says}" for word, says in COUNTED.items() if words[word])
    return f"Of {len(study.claims)} claims, {told}."


def _wrapped(part: str) -> str:
    """Prose in lines of one width, a paragraph or a point each; tables, commands and figures as they are."""
    if part.startswith(("|", " ", "#", "!")):
        return part
    paragraphs = (
        textwrap.fill(
            paragraph, 120, subsequent_indent="  " * paragraph.startswith("- "), break_long_words=False,
            break_on_hyphens=False,
        ) for paragraph in part.split("\n\n")
    )  # fmt: skip
    return "\n\n".join(paragraphs).replace("\n\n- ", "\n- ")
