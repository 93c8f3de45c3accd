"""The page of results: a summary for everyone, a part for each study, what was not run, and what else was shown."""

from collections.abc import Mapping, Sequence

from experiments.language import page as language
from experiments.part import Part
from experiments.runner.made import made, not_run
from experiments.summary import found, in_short, missing
from experiments.tasks import page as tasks

COMMAND = "python -m experiments.report --write"
PREPARE = (
    "python -m experiments.language.data --english corpus --code corpus-code"
    " --tokenizer checkpoints/thoughtbubbles-11m/tokenizer.tiktoken"
)
TITLE = """\
# When do forks help?

A model of this kind can *fork* a token: it carries several streams of computation for it instead of one, under a
budget that is set when the model is used. That costs operations. When does it pay? {finding}
{missing}

What is compared, and what counts as an answer, was written down before any run, in a
[plan for language](experiments/language.md), a [plan for tasks](experiments/tasks.md) and a
[plan for the shipped checkpoint](experiments/checkpoint.md); what was changed later is dated there. Words are used as
the plans define them: a claim *holds*, *is contradicted*, or *is open*, which means that these runs do not decide it.
This page is written from the results by one command; no verdict, and no sentence of the summary, is written by hand."""
LANGUAGE = """\
## Part 1: English text

Does a model with forks predict text better than one without, when each has the learning rate that suits it best?
Forks come with *scores*, which decide who forks and also weigh attention and updates. The arm `scores` has these
and no fork, so that only what is better than `scores` as well can be due to forks. All arms learn from the same
text in the same order for a seed, and have the same number of parameters, but for `deeper`. Losses were measured in
bfloat16, as models were trained; two equal trainings on a GPU differ by up to 0.002 nats on one machine and 0.008
over several ([TRAINING_SPEED.md](TRAINING_SPEED.md)), which is part of the spread over seeds."""
TASKS = """\
## Part 2: problems of known difficulty

In text nobody knows how hard a token is. Here problems are made, of a difficulty n that is known: *wide* ones
combine n things that stand side by side (`sums`, `lookups`), *deep* ones take n steps, each of which needs the one
before (`permutations`, `hops`). *Copies* are easy, and *noise* cannot be learned. A looped model runs its layers
twice, which is depth where forks are width."""
ELSEWHERE = """\
## What was not run

English text:

{language}

Problems of known difficulty:

{tasks}

Not planned: sizes above 64M parameters, which the paper has (150M and more, 2.5 billion tokens). What is open or
contradicted here may be otherwise there, and the other way round.

## An earlier study

A study of 2026-11-22 stood on this page until it was withdrawn: its training step kept residual streams in
bfloat16, with which models with forks, and no others, learn worse ([TRAINING_SPEED.md](TRAINING_SPEED.md)), and its
arms shared one learning rate. Its results are in the repository's history, at commit 5c2c4c1.

## Inside the shipped checkpoint

[Its card](../checkpoints/thoughtbubbles-11m/README.md) compares it with its regular twin: 3.1% less perplexity, one
pair of runs with one seed, without a control for scores. [Look inside](EVALUATION.md#look-inside) explains the
figures of its forks on held-out text; the command draws them, and [REPRODUCE.md](REPRODUCE.md#pictures) has it with
the text of the map. The recipes that were tried for it are in
[train-sweep.md](../benchmarks/results/train-sweep.md).

    thoughtbubbles analyse checkpoints/thoughtbubbles-11m --data data/val.jsonl.gz --tokens 16384 --out analysis

![Figure 4 of the paper: what originals attend to, in all and by stream](images/analysis-attention.png)

![Figure 5: forks per token against the entropy of the next token](images/analysis-entropy.png)

![Figure 7: the forks of each token of a text in every layer](images/analysis-map.png)"""


def page(both: Sequence[Part], shipped: tuple[str, Sequence[str]] = ("", ())) -> str:
    """Return the page as Markdown; `shipped` is what it says in short and in full of the shipped checkpoint."""
    text, problems = both
    sections = [TITLE.format(finding=found(both), missing=missing(both)), "## In short", in_short(both), shipped[0]]
    sections += [LANGUAGE, _arms(text, language.ARMS), _made(text, "language", PREPARE)]
    for size, arms in text.sizes.items():
        sections += language.section(text.study, size, arms, text.results)
    sections += [TASKS, _arms(problems, tasks.ARMS), _made(problems, "tasks", "python -m experiments.tasks.data")]
    for size, arms in problems.sizes.items():
        sections += tasks.section(problems.study, size, arms, problems.results)
    lacking = [not_run(part.study, part.results) for part in both]
    sections += [*shipped[1], ELSEWHERE.format(language=lacking[0], tasks=lacking[1])]
    return "\n\n".join(filter(None, sections)) + "\n"


def _arms(part: Part, says: Mapping[str, str]) -> str:
    return "The arms:\n\n" + "\n".join(f"- `{arm}`: {says[arm]}" for arm in part.study.arms)


def _made(part: Part, name: str, prepare: str) -> str:
    commands = [prepare, f"python -m experiments.{name}.study", COMMAND]
    link = f"[{name}.jsonl](../benchmarks/results/{name}.jsonl)"
    return f"{made(part.study, part.results, commands, link)}\n\nThe last one writes this page and draws its figures."
