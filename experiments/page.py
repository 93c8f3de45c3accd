"""The page of results: a summary for everyone, a part for each study, and what else was shown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.language import compare as language_compare
from experiments.language import outcomes as language
from experiments.language import page as language_page
from experiments.language.measure import Evaluation as LanguageEvaluation
from experiments.runner.comparison import Comparison, Word
from experiments.runner.found import Found, by_arm, planned
from experiments.runner.made import made, not_run
from experiments.runner.outcomes import Reading
from experiments.runner.plan import Result, Study, read_study
from experiments.tasks import compare as tasks_compare
from experiments.tasks import outcomes as tasks
from experiments.tasks import page as tasks_page
from experiments.tasks.measure import Evaluation as TasksEvaluation

COMMAND = "python -m experiments.report --write"


SEVERAL: Mapping[Word, str] = {
    "holds": "hold", "is contradicted": "are contradicted", "is equal to within 0.01": "are equal to within 0.01",
    "is open": "are open", "not measured": "are not measured",
}  # fmt: skip


class Part(NamedTuple):
    """A study and its results."""

    study: Study
    results: Sequence[Result]

    @property
    def sizes(self) -> Mapping[str, Found]:
        """The reported results of each size that has one."""
        return {size: found for size in self.study.sizes if (found := by_arm(self.study, size, self.results))}


class Links(NamedTuple):
    """How a file names what the finding rests on."""

    page: str
    plan: str


README = Links("[results](docs/RESULTS.md)", "[planned beforehand](docs/experiments/language.md)")
CARD = Links("results: `docs/RESULTS.md`", "planned beforehand (`docs/experiments/language.md`)")

TITLE = """\
# When do forks help?

A model of this kind can *fork* a token: it carries several streams of computation for it instead of one, under a
budget that is set when the model is used. That costs operations. This page reports where it pays, in models small
enough to train many times. What is compared, and what counts as an answer, was written down before any run: [the
plan for language](experiments/language.md), [the plan for tasks](experiments/tasks.md). Words are used as the plans
define them: a claim *holds*, *is contradicted*, or *is open*, which means that these runs do not decide it. This
page is written from the results by one command, and no sentence of the summary or verdict of a table is written by
hand."""

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

{missing}

Not planned: sizes above 64M parameters, which the paper has (150M and more, 2.5 billion tokens). What is open or
contradicted here may be otherwise there, and the other way round.

## An earlier study

A study of 2026-11-22 stood on this page until it was withdrawn: its training step kept residual streams in
bfloat16, with which models with forks, and no others, learn worse ([TRAINING_SPEED.md](TRAINING_SPEED.md)), and its
arms shared one learning rate. Its results are in the repository's history, at commit bc8e4b4.

## The shipped checkpoint

[Its card](../checkpoints/thoughtbubbles-11m/README.md) compares it with its regular twin: 3.1% less perplexity, one
pair of runs with one seed, without a control for scores. [Look inside](EVALUATION.md#look-inside) explains the
figures of its forks on held-out text; the command draws them, and [REPRODUCE.md](REPRODUCE.md#pictures) has it with
the text of the map. The recipes that were tried for it are in
[train-sweep.md](../benchmarks/results/train-sweep.md).

    thoughtbubbles analyse checkpoints/thoughtbubbles-11m --data data/val.jsonl.gz --tokens 16384 --out analysis

![Figure 4 of the paper: what originals attend to, in all and by stream](images/analysis-attention.png)

![Figure 5: forks per token against the entropy of the next token](images/analysis-entropy.png)

![Figure 7: the forks of each token of a text in every layer](images/analysis-map.png)"""


def parts(language_results: Sequence[Result], tasks_results: Sequence[Result]) -> list[Part]:
    """Return both committed studies with their results."""
    folder = Path(__file__).parent
    return [
        Part(read_study(folder / "language" / "study.toml", LanguageEvaluation), language_results),
        Part(read_study(folder / "tasks" / "study.toml", TasksEvaluation), tasks_results),
    ]


def page(both: Sequence[Part]) -> str:
    """Return the page as Markdown."""
    text, problems = both
    sections = [
        TITLE,
        _summary(text, problems),
        LANGUAGE,
        _arms(text, language_page.ARMS),
        _made(text, "language", PREPARE),
    ]
    for size, found in text.sizes.items():
        sections += language_page.section(text.study, size, found, text.results)
    sections += [TASKS, _arms(problems, tasks_page.ARMS), _made(problems, "tasks", "python -m experiments.tasks.data")]
    for size, found in problems.sizes.items():
        sections += tasks_page.section(problems.study, size, found, problems.results)
    titles = ("English text", "Problems of known difficulty")
    lacking = [not_run(part.study, part.results) for part in both]
    missing = "\n\n".join(f"{title}:\n\n{lines}" for title, lines in zip(titles, lacking, strict=True))
    return "\n\n".join([*sections, ELSEWHERE.format(missing=missing)]) + "\n"


PREPARE = (
    "python -m experiments.language.data --english corpus --code corpus-code"
    " --tokenizer checkpoints/thoughtbubbles-11m/tokenizer.tiktoken"
)


def finding(both: Sequence[Part], links: Links) -> str:
    """Return in a few sentences whether forks help, for a file that names the page with `links`."""
    text, problems = both
    found = [_found_of_language(text), *_found_of_tasks(problems)]
    return (
        f"{' '.join(each for each in found if each)} Every arm has its own learning rate; {links.plan}, {links.page}."
    )


def _found_of_language(part: Part) -> str:
    """Return the finding of the first size whose runs are complete."""
    for size, found in part.sizes.items():
        comparisons = language_compare.compare(part.study, found)
        about = f"English text, {_millions(found, 'parameters')} parameters, {_millions(found, 'tokens')} tokens"
        if said := language.finding(part.study, size, comparisons, about):
            return said
    size = part.study.stages[0].size
    made, goal = sum(map(len, part.sizes.get(size, {}).values())), len(planned(part.study, size))
    return f"**Not shown: whether the forks themselves help.** {made} of {goal} runs that are to tell are made."


def _found_of_tasks(part: Part) -> list[str]:
    found = []
    for size, of in part.sizes.items():
        at = tasks_compare.analysed(part.study, size, of)
        found.append(tasks.finding(at, tasks_compare.compare(part.study, at.found)))
    return [each for each in found if each]


def _summary(text: Part, problems: Part) -> str:
    lines = []
    for size, found in text.sizes.items():
        compared = language_compare.compare(text.study, found)
        read = language.readings(text.study, size, found, compared)
        about = f"English text, {_millions(found, 'parameters')} parameters, {_millions(found, 'tokens')} tokens"
        lines += _lines(f"{about} (`{size}`)", language.sentences(compared), read, compared)
    for size, found in problems.sizes.items():
        at = tasks_compare.analysed(problems.study, size, found)
        judged = tasks_compare.compare(problems.study, at.found)
        about = f"Problems of known difficulty, {_millions(found, 'parameters')} parameters (`{size}`)"
        lines += _lines(about, tasks.sentences(judged), tasks.readings(at, judged), judged)
    for part, name in ((text, "English text"), (problems, "Problems of known difficulty")):
        if not part.sizes:
            lines.append(f"**{name}.** Not measured yet: no reported run has been made.")
    made, goal = (sum(counts) for counts in zip(_count(text), _count(problems), strict=True))
    lines.append(f"**What is missing.** {made} of {goal} planned runs are made; [the others](#what-was-not-run).")
    return "## In short\n\n" + "\n\n".join(lines)


def _lines(
    about: str, sentences: Sequence[str], readings: Sequence[Reading], comparisons: Sequence[Comparison]
) -> list[str]:
    applies = [each.reading for each in readings if each.applies]
    undecided = any(each.applies is None for each in readings)
    read = f"By the plan's table: {'; '.join(applies)}." if applies else ""
    waits = "For some rows of the plan's table runs are missing." if undecided else ""
    words = Counter(SEVERAL[each.word] if len(each.apart) != 1 else "have one seed alone" for each in comparisons)
    sure = f"Of {len(comparisons)} claims, {', '.join(f'{count} {word}' for word, count in words.items())}."
    bullets = "\n".join(f"- {sentence}" for sentence in sentences)
    return [f"**{about}.** {' '.join(filter(None, (read, waits, sure)))}", bullets]


def _arms(part: Part, says: Mapping[str, str]) -> str:
    arms = [arm for arm in part.study.arms if arm in says]
    return "The arms:\n\n" + "\n".join(f"- `{arm}`: {says[arm]}" for arm in arms)


def _made(part: Part, name: str, prepare: str) -> str:
    commands = [prepare, f"python -m experiments.{name}.study", COMMAND]
    link = f"[{name}.jsonl](../benchmarks/results/{name}.jsonl)"
    return f"{made(part.study, part.results, commands, link)}\n\nThe last one writes this page and draws its figures."


def _millions(found: Found, what: str) -> str:
    run = next(iter(next(iter(found.values())).values()))
    return f"{run[what] / 1e6:.1f}M"


def _count(part: Part) -> tuple[int, int]:
    made = sum(len(seeds) for found in part.sizes.values() for seeds in found.values())
    return made, sum(len(planned(part.study, size)) for size in part.study.sizes)
