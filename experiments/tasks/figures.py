"""Draw the figures of the page's part on tasks. Needs matplotlib."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.runner.figures import COLOURS, MARKERS, SMALL, label, legend, panels, spread_rows
from experiments.runner.found import Found
from experiments.runner.intervals import t_interval
from experiments.tasks.compare import CHANCE
from experiments.tasks.measure import OWN, TRAINED
from experiments.tasks.page import figure_names
from thoughtbubbles.training.synthetic import TASKS

SORTS = {"copy": "easy", "noise": "nothing to compute", "sums": "wide", "lookups": "wide", "permutations": "deep",
         "hops": "deep"}  # fmt: skip
DIFFICULTY = "n; dotted: the most that was trained"


def figures(size: str, found: Found, _arms: Sequence[str]) -> dict[str, Figure]:
    """Return a size's figures by file name."""
    return {file: DRAWN[name](found) for name, file in figure_names(size, found).items()}


def _errors(found: Found) -> Figure:
    groups = {"wide": "wide, n from 1 to 8", "deep": "deep, n from 1 to 8", "wide-beyond": "wide, n from 9 to 16",
              "deep-beyond": "deep, n from 9 to 16"}  # fmt: skip
    figure, every = panels((2, 2), (7.6, 0.5 * len(found) + 2.2), sharey=True)
    for axes, (group, title) in zip(every, groups.items(), strict=True):
        rows = {arm: [100 * run["errors"][OWN][group] for run in seeds.values()] for arm, seeds in found.items()}
        spread_rows(axes, rows, {arm: ends for arm, values in rows.items() if (ends := t_interval(values))})
        label(axes, title, "wrong answers, %")
    figure.supxlabel("dots: seeds, line: 95% t interval of the mean", fontsize=SMALL)
    return figure


def _accuracy(found: Found) -> Figure:
    runs = list(found["4l"].values())
    ratios = sorted((ratio for ratio in runs[0]["accuracy"] if ratio != OWN), key=float)
    colours = [mpl.colormaps["viridis"](0.92 * i / max(1, len(ratios) - 1)) for i in range(len(ratios))]
    figure, every = panels((2, 3), (9.0, 5.2), sharex=True, sharey=True)
    for axes, task in zip(every, TASKS, strict=True):
        for place, (ratio, colour) in enumerate(zip(ratios, colours, strict=True)):
            points = _by_n([run["accuracy"][ratio][task] for run in runs], 100)
            axes.plot(*points, color=colour, linewidth=1.3, marker=MARKERS[place % len(MARKERS)], markersize=3,
                      label=ratio)  # fmt: skip
        if task in CHANCE:
            axes.axhline(100 * CHANCE[task], color="#333", linewidth=0.8, linestyle="--", label="_")
        _trained(axes)
        label(axes, f"{task} ({SORTS[task]})")
    _outer(every, 3, "n", "right answers, %")
    legend(figure, every[0], "fork_ratio")
    figure.supxlabel("dashed: chance; dotted: the highest n that was trained", fontsize=SMALL)
    return figure


def _forks(found: Found) -> Figure:
    arms = [arm for arm in ("2l", "4l") if arm in found]
    figure, every = panels((1, len(arms)), (8.6, 3.6), sharey=True)
    for axes, arm in zip(every, arms, strict=True):
        for task, colour, marker in zip(TASKS, COLOURS, MARKERS, strict=False):
            style = "--" if SORTS[task] == "wide" else "-." if SORTS[task] == "deep" else "-"
            points = _by_n([run["inside"]["answer_forks"][task] for run in found[arm].values()], 1)
            axes.plot(*points, color=colour, marker=marker, markersize=4, linewidth=1.3, linestyle=style,
                      label=f"{task} ({SORTS[task]})")  # fmt: skip
        _trained(axes)
        label(axes, f"{arm}, at its own ratio", DIFFICULTY)
    every[0].set_ylabel("streams beside the original, at answers", fontsize=SMALL)
    legend(figure, every[0])
    return figure


def _by_n(cells: Sequence[Sequence[float | None]], scale: float) -> tuple[list[int], list[float]]:
    """Return the n that were measured, and the mean over runs at each, from each run's values by n."""
    points = {}
    for n, of_runs in enumerate(zip(*cells, strict=True), start=1):
        if values := [value for value in of_runs if value is not None]:
            points[n] = scale * statistics.mean(values)
    return list(points), list(points.values())


def _trained(axes: Axes) -> None:
    axes.axvline(TRAINED[-1] + 0.5, color="#333", linewidth=0.8, linestyle=":")
    axes.set_xticks([1, 4, 8, 12, 16])


def _outer(every: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Name the axes at the left and at the foot of a grid of panels."""
    for axes in every[-columns:]:
        axes.set_xlabel(x, fontsize=SMALL)
    for axes in every[::columns]:
        axes.set_ylabel(y, fontsize=SMALL)


DRAWN: Mapping[str, Callable[[Found], Figure]] = {"errors": _errors, "accuracy": _accuracy, "forks": _forks}
