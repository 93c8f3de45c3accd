"""The figures of a study's page: every seed is a dot. Needs matplotlib."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study_compare import Found, at_positions, differences, losses
from benchmarks.study_plan import Study
from model.selection import Rule

COLOURS = ("#4c6a92", "#e08a2e", "#5a8f5a", "#c1443c", "#8c6bb1", "#777777")
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(study: Study, found: Found, folder: Path) -> None:
    """All that the results allow, as study-differences, -cost, -rules and -dial.png."""
    folder.mkdir(parents=True, exist_ok=True)
    report = study.report
    cost, dial = ([arm for arm in arms if arm in found] for arms in (report.cost, report.dial))
    forks = [arm for arm in dict.fromkeys([*report.cost, *report.dial]) if _has_rules(found, arm)]
    figures = {
        "differences": _draw_differences(found, report.regular), "cost": _draw_cost(found, cost),
        "rules": _draw_rules(found, forks), "dial": _draw_dial(found, dial),
    }  # fmt: skip
    for name, figure in figures.items():
        figure.savefig(folder / f"study-{name}.png", facecolor="white")


def _draw_differences(found: Found, regular: str) -> Figure:
    """Every seed's loss less that of the regular model of the same seed, an arm a line."""
    arms = [arm for arm in found if arm != regular]
    figure, axes = _axes(7.2, 0.27 * len(arms) + 1.3, f"Loss less that of {regular} with the same seed")
    for place, arm in enumerate(arms):
        apart = differences(losses(found, arm), losses(found, regular))
        axes.plot(apart, [place] * len(apart), "o", color=COLOURS[0], markersize=5, alpha=0.6, markeredgewidth=0)
        if apart:
            axes.plot([statistics.mean(apart)], [place], "|", color=COLOURS[3], markersize=13, markeredgewidth=1.8)
    axes.axvline(0, color="#333", linewidth=0.8)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_xlabel("nats a token, to the left is better; each dot a seed, the stroke their mean", fontsize=8.5)
    axes.invert_yaxis()
    return figure


def _draw_cost(found: Found, arms: Sequence[str]) -> Figure:
    """Loss against what learning costs."""
    figure, axes = _axes(7.2, 3.8, "Loss against what a token costs in learning")
    for arm, colour, marker in zip(arms, COLOURS, MARKERS, strict=False):
        cost = next(iter(found[arm].values()))["flops_per_token"] / 1e6
        own = list(losses(found, arm).values())
        axes.plot([cost] * len(own), own, marker, color=colour, markersize=6, alpha=0.7, markeredgewidth=0, label=arm)
        axes.plot([cost], [statistics.mean(own)], "_", color=colour, markersize=16, markeredgewidth=1.6)
    axes.set_xlabel("million operations a token; each mark a seed, the stroke their mean", fontsize=8.5)
    axes.set_ylabel("loss (nats a token)", fontsize=8.5)
    axes.set_xlim(left=0)
    axes.margins(x=0.1)
    _legend(figure, axes)
    return figure


def _draw_rules(found: Found, arms: Sequence[str]) -> Figure:
    """What each rule adds to `blockwise` at the same positions."""
    rules = get_args(Rule)[1:]
    figure, axes = _axes(7.2, 3.4, "Loss under each rule less that under blockwise, same model and positions")
    for index, (arm, colour, marker) in enumerate(zip(arms, COLOURS, MARKERS, strict=False)):
        for place, rule in enumerate(rules):
            apart = differences(at_positions(found, arm, rule), at_positions(found, arm, "blockwise"))
            at = place + 0.14 * (index - (len(arms) - 1) / 2)
            axes.plot(
                [at] * len(apart), apart, marker, color=colour, markersize=6, alpha=0.7, markeredgewidth=0,
                label=arm if place == 0 else None,
            )  # fmt: skip
    axes.axhline(0, color="#333", linewidth=0.8)
    axes.set_xticks(range(len(rules)), rules)
    axes.set_xlim(-0.5, len(rules) - 0.5)
    axes.set_ylabel("nats a token; each mark a seed", fontsize=8.5)
    if arms:
        _legend(figure, axes)
    return figure


def _draw_dial(found: Found, arms: Sequence[str]) -> Figure:
    """Loss under `causal` against the ratio: every seed, and a line through their means."""
    figure, axes = _axes(7.2, 4.0, "Loss at each fork_ratio, rule causal")
    for arm, colour, marker in zip(arms, COLOURS, MARKERS, strict=False):
        dials = [result["dial"] for result in found[arm].values()]
        ratios = [float(ratio) for ratio in dials[0]]
        means = [statistics.mean(dial[ratio] for dial in dials) for ratio in dials[0]]
        axes.plot(ratios, means, "-", color=colour, linewidth=1.3)
        for index, dial in enumerate(dials):
            axes.plot(
                ratios, list(dial.values()), marker, color=colour, markersize=5, alpha=0.6, markeredgewidth=0,
                label=arm if index == 0 else None,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axes.minorticks_off()
    axes.set_xlabel(
        "fork_ratio: streams a token that the budget allows; each mark a seed, lines their means", fontsize=8.5
    )
    axes.set_ylabel("loss (nats a token)", fontsize=8.5)
    if arms:
        _legend(figure, axes)
    return figure


def _has_rules(found: Found, arm: str) -> bool:
    return any("blockwise" in result["rules"] for result in found.get(arm, {}).values())


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside the plot, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8.5)


def _axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(labelsize=8.5, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes
