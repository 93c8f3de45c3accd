"""The figures of `benchmarks.study_report`. Needs matplotlib."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study_plan import Study
from benchmarks.study_report import Found, differences, losses

COLOURS = ("#4c6a92", "#e08a2e", "#5a8f5a", "#c1443c", "#8c6bb1", "#777777")


def draw(study: Study, found: Found, folder: Path) -> None:
    """All that the results allow."""
    folder.mkdir(parents=True, exist_ok=True)
    _draw_differences(found, study.report.regular).savefig(folder / "study-differences.png", facecolor="white")
    cost = [arm for arm in study.report.cost if arm in found]
    _draw_cost(found, cost).savefig(folder / "study-cost.png", facecolor="white")
    dial = [arm for arm in study.report.dial if arm in found]
    _draw_dial(found, dial).savefig(folder / "study-dial.png", facecolor="white")


def _draw_differences(found: Found, regular: str) -> Figure:
    """Every seed's loss less that of the regular model of the same seed, an arm a line."""
    arms = [arm for arm in found if arm != regular]
    figure, axes = _axes(6.8, 0.32 * len(arms) + 1.2, f"Loss less that of {regular} under the same seed (nats a token)")
    for place, arm in enumerate(arms):
        apart = differences(losses(found, arm), losses(found, regular))
        axes.plot(apart, [place] * len(apart), "o", color=COLOURS[0], markersize=4, alpha=0.7)
        if apart:
            axes.plot([statistics.mean(apart)], [place], "|", color=COLOURS[3], markersize=14)
    axes.axvline(0, color="#333", linewidth=0.8)
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.set_xlabel("each dot a seed, the stroke their mean", fontsize=8)
    axes.invert_yaxis()
    return figure


def _draw_cost(found: Found, arms: Sequence[str]) -> Figure:
    """Loss against what learning costs."""
    figure, axes = _axes(5.6, 3.8, "Loss (nats a token) against what a token costs")
    for arm, colour in zip(arms, COLOURS, strict=False):
        cost = next(iter(found[arm].values()))["flops_per_token"] / 1e6
        own = list(losses(found, arm).values())
        axes.plot([cost] * len(own), own, "o", color=colour, markersize=4, alpha=0.7)
        axes.annotate(arm, (cost, statistics.mean(own)), (7, -3), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xlabel("million operations a token in learning, each dot a seed", fontsize=8)
    axes.margins(x=0.15)
    return figure


def _draw_dial(found: Found, arms: Sequence[str]) -> Figure:
    """Loss under `causal` against the ratio, the mean of the seeds and how far they reach."""
    figure, axes = _axes(5.6, 3.8, "Loss (nats a token) at each fork_ratio, rule causal")
    for arm, colour in zip(arms, COLOURS, strict=False):
        dials = [result["dial"] for result in found[arm].values()]
        ratios = [float(ratio) for ratio in dials[0]]
        columns = [[dial[ratio] for dial in dials] for ratio in dials[0]]
        axes.plot(ratios, [statistics.mean(column) for column in columns], "o-", color=colour, markersize=4, label=arm)
        axes.fill_between(ratios, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axes.set_xlabel("fork_ratio; bands reach from the lowest seed to the highest", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes
