"""What docs/experiments/tasks.md says of each outcome, and the study's findings in sentences."""

import statistics
from collections.abc import Mapping, Sequence

from experiments.runner.comparison import Comparison, Key, by_key, count_tested
from experiments.runner.outcomes import CONTRADICTED, HOLDS, OPEN, Outcome, Reading, read_outcomes
from experiments.runner.plan import Claim
from experiments.runner.sentences import Measure, say
from experiments.tasks.compare import Analysed, differences, forks_at_answers
from thoughtbubbles.training.synthetic import DEEP, WIDE

WRONG = Measure("wrong answers", lambda share: f"{100 * share:+.1f}", " percentage points", "")
FORKS_WIDE: Key = ("2l", "regular", "wide")
SCORES_WIDE: Key = ("2l", "scores", "wide")
FORKS_DEEP: Key = ("2l", "regular", "deep")
WIDTH: Key = ("2l", "loop-2", "wide")
DEPTH: Key = ("loop-2", "2l", "deep")
DIAL_WIDE: Key = ("4l", "4l", "wide-hard")
DIAL_DEEP: Key = ("4l", "4l", "deep-hard")
WIDE_SAYS = "on wide problems (many things side by side)"
DEEP_SAYS = "on deep problems (many steps in turn)"
SAYINGS: Mapping[Key, tuple[str, str]] = {
    FORKS_WIDE: ("models with forks", f"regular ones {WIDE_SAYS}"),
    SCORES_WIDE: ("models with forks", f"models with the scores alone {WIDE_SAYS}"),
    FORKS_DEEP: ("models with forks", f"regular ones {DEEP_SAYS}"),
    WIDTH: ("models with forks", f"looped models of equal operations {WIDE_SAYS}"),
    DEPTH: ("looped models", f"models with forks and equal operations {DEEP_SAYS}"),
    DIAL_WIDE: ("models at a budget of four streams a token", "the same models at one, on the harder wide problems"),
    DIAL_DEEP: ("models at a budget of four streams a token", "the same models at one, on the harder deep problems"),
}
"""Of a claim, its two sides in words."""
HARD, TRAINED = range(5, 9), range(1, 9)


def readings(at: Analysed, comparisons: Sequence[Comparison]) -> list[Reading]:
    """Return the plan's table."""
    helps, but = "`2l` < `regular` holds, `2l` < `scores` open on wide tasks", "what helps may be the scores"
    rows = [
        Outcome("`2l` < `regular` and `2l` < `scores` hold on wide tasks", "forks buy width",
                {FORKS_WIDE: HOLDS, SCORES_WIDE: HOLDS}),
        Outcome(helps, but, {FORKS_WIDE: HOLDS, SCORES_WIDE: OPEN}),
        Outcome("`loop-2` < `2l` on deep, `2l` < `loop-2` on wide tasks",
                "width and depth are different things, and tasks decide", {DEPTH: HOLDS, WIDTH: HOLDS}),
        Outcome("`loop-2` < `2l` on deep, `2l` < `loop-2` open or contradicted on wide tasks",
                "looping is the better use of the operations", {DEPTH: HOLDS, WIDTH: OPEN + CONTRADICTED}),
        *(Outcome(f"ratio 4 < ratio 1 holds on hard {tasks} problems, by more than on n of 1 and 2",
                  f"the dial pays where {tasks} problems are harder", {key: HOLDS}, _Steeper(at, tasks))
          for tasks, key in (("wide", DIAL_WIDE), ("deep", DIAL_DEEP))),
        Outcome("forks of `2l` on noise as many as on hard answers, or more",
                "forks follow entropy, not difficulty", {}, lambda: noise_forks(at, "2l")),
    ]  # fmt: skip
    return read_outcomes(rows, by_key(comparisons), complete(at, comparisons))


def complete(at: Analysed, comparisons: Sequence[Comparison]) -> set[Key]:
    """Return the claims that have all analysed seeds, two at least, and whose verdict further claims cannot change."""
    return {key for key, each in by_key(comparisons).items() if each.settled and len(each.apart) == len(at.seeds) > 1}


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what was found of the claims that matter most, in plain words."""
    found, tests = by_key(comparisons), count_tested(comparisons)
    return [say(found.get(key), *sides, WRONG, tests) for key, sides in SAYINGS.items()]


def finding(at: Analysed, comparisons: Sequence[Comparison]) -> str | None:
    """Return in a sentence whether forks help on problems of known difficulty; None while a claim lacks seeds."""
    found = by_key(comparisons)
    if not {FORKS_WIDE, SCORES_WIDE, FORKS_DEEP} <= complete(at, comparisons):
        return None
    wide, deep = found[FORKS_WIDE], found[FORKS_DEEP]
    beyond = {"holds": ", and beyond what their scores do", "is contradicted": ", but less than their scores alone"}
    more = beyond.get(found[SCORES_WIDE].word, ", which may be due to their scores") if wide.word == "holds" else ""
    part = "" if len(at.seeds) == at.planned else f" ({len(at.seeds)} of {at.planned} planned seeds)"
    return (
        f"On made-up problems, {_helps(wide)} where many things stand side by side{more},"
        f" and {_helps(deep)} where steps follow one another{part}."
    )


def _helps(each: Comparison) -> str:
    said = {"holds": "forks help", "is contradicted": "forks do harm"}
    if each.word not in said:
        return "it is open whether forks help"
    return f"{said[each.word]} ({WRONG.name} {WRONG.amount(each.mean)}{WRONG.unit})"


def noise_forks(at: Analysed, arm: str) -> bool | None:
    """Return whether an arm forks at noise at least as much as at hard answers, on average over seeds."""
    apart = [noise - hard for noise, hard in noise_and_hard(at, arm)]
    return statistics.mean(apart) >= 0 if apart else None


def noise_and_hard(at: Analysed, arm: str) -> list[tuple[float, float]]:
    """Return by seed the forks where noise is predicted, and where hard answers (n from 5 to 8) are."""
    seeds = at.found.get(arm, {}).values()
    return [
        (forks_at_answers(result, ("noise",), TRAINED), forks_at_answers(result, (*WIDE, *DEEP), HARD))
        for result in seeds
    ]


class _Steeper:
    """Whether ratio 4 gains more over 1 on hard problems of these tasks than on easy ones."""

    def __init__(self, at: Analysed, tasks: str) -> None:
        self._at, self._tasks = at, tasks

    def __call__(self) -> bool:
        easy, hard = (statistics.mean(differences(self._at.found, self._claim(of))) for of in ("easy", "hard"))
        return hard < easy

    def _claim(self, of: str) -> Claim:
        return Claim(says="", lower="4l", than="4l", measure=f"{self._tasks}-{of}", ratios=[4, 1])
