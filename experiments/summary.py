"""The answer to "When do forks help?": a paragraph for everyone, and what each study found in sentences."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from experiments.language import compare as language_compare
from experiments.language import outcomes as language
from experiments.part import Part
from experiments.runner.comparison import Comparison
from experiments.runner.found import Found
from experiments.runner.markdown import verdict
from experiments.runner.outcomes import Reading
from experiments.tasks import compare as tasks_compare
from experiments.tasks import outcomes as tasks


class Links(NamedTuple):
    """How a file names what the finding rests on."""

    page: str
    plan: str


README = Links("[results](docs/RESULTS.md)", "[planned beforehand](docs/experiments/language.md)")
CARD = Links("results: `docs/RESULTS.md`", "planned beforehand (`docs/experiments/language.md`)")
MISSING = """\
{made} of {goal} planned runs are made; [the others](#what-was-not-run) may change what is said here."""
WHOLE = "All planned runs are made."
UNDECIDED = "**Not shown: whether the forks themselves help.** {made} of {goal} runs that are to tell are made."


def finding(both: Sequence[Part], links: Links) -> str:
    """Return in a few sentences whether forks help, for a file that names the page with `links`."""
    return f"{found(both)} Every arm has its own learning rate; {links.plan}, {links.page}."


def found(both: Sequence[Part]) -> str:
    """Return in a few sentences whether forks help."""
    text, problems = both
    return " ".join([_of_language(text), *_of_tasks(problems)])


def missing(both: Sequence[Part]) -> str:
    """Return how many of the planned runs are made."""
    counts = [part.made_of(size) for part in both for size in part.study.sizes]
    made, goal = (sum(each) for each in zip(*counts, strict=True))
    return WHOLE if made == goal else MISSING.format(made=made, goal=goal)


def in_short(both: Sequence[Part]) -> str:
    """Return what each study found, with the verdicts that it rests on."""
    text, problems = both
    lines = []
    for size, arms in text.sizes.items():
        compared = language_compare.compare(text.study, size, arms)
        said = [*language.sentences(compared), *language.caveats(arms)]
        read = language.readings(text.study, size, arms, compared)
        lines += _lines(f"{_about(arms)} (`{size}`)", said, read, compared)
    for size, arms in problems.sizes.items():
        at = tasks_compare.analysed(problems.study, size, arms)
        judged = tasks_compare.compare(problems.study, size, at.found)
        about = f"Problems of known difficulty, {_millions(arms, 'parameters')} parameters (`{size}`)"
        lines += _lines(about, tasks.sentences(judged), tasks.readings(at, judged), judged)
    for part, name in ((text, "English text"), (problems, "Problems of known difficulty")):
        if not part.sizes:
            lines.append(f"**{name}.** Not measured yet: no reported run has been made.")
    return "\n\n".join(lines)


def _of_language(part: Part) -> str:
    """Return the finding of the first size where it is decided, else what the first one has so far."""
    compared = {size: language_compare.compare(part.study, size, arms) for size, arms in part.sizes.items()}
    for size, comparisons in compared.items():
        if said := language.finding(part.study, size, comparisons, _about(part.sizes[size])):
            return said
    first = part.study.stages[0].size
    made, goal = part.made_of(first)
    so_far = language.so_far(compared[first]) if first in compared else ""
    return f"{UNDECIDED.format(made=made, goal=goal)} {so_far}".strip()


def _of_tasks(part: Part) -> list[str]:
    sentences = []
    for size, arms in part.sizes.items():
        at = tasks_compare.analysed(part.study, size, arms)
        sentences.append(tasks.finding(at, tasks_compare.compare(part.study, size, at.found)))
    return [each for each in sentences if each]


def _lines(
    about: str, sentences: Sequence[str], readings: Sequence[Reading], comparisons: Sequence[Comparison]
) -> list[str]:
    applies = [each.reading for each in readings if each.applies]
    read = f"By the plan's table: {'; '.join(applies)}." if applies else ""
    undecided = any(each.applies is None for each in readings)
    waits = "Some rows of the plan's table are not decided yet." if undecided else ""
    words = Counter(verdict(each) for each in comparisons)
    sure = f"Verdicts on {len(comparisons)} claims: {'; '.join(f'{word}: {count}' for word, count in words.items())}."
    bullets = "\n".join(f"- {sentence}" for sentence in sentences)
    return [f"**{about}.** {' '.join(filter(None, (read, waits, sure)))}", bullets]


def _about(arms: Found) -> str:
    return f"English text, {_millions(arms, 'parameters')} parameters, {_millions(arms, 'tokens')} tokens"


def _millions(arms: Found, what: str) -> str:
    runs = arms.get("2l", next(iter(arms.values())))
    return f"{next(iter(runs.values()))[what] / 1e6:.1f}M"
