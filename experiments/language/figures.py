"""Draw the figures of the study's page. Needs matplotlib."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.language.compare import Found, differences
from experiments.language.page import REGULAR
from experiments.runner.intervals import t_interval
from experiments.runner.plan import Result

COLOURS = ("#4c6a92", "#e08a2e", "#5a8f5a", "#c1443c", "#8c6bb1", "#777777", "#3a9ea5", "#b5651d")
BINS = 12
"""Bins of equally many tokens by entropy."""


def draw(sizes: Mapping[str, Found], folder: Path) -> list[str]:
    """Draw what the results allow into `folder`, as language-SIZE-NAME.png, and return the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for size, found in sizes.items():
        for name, figure in _figures(found):
            names.append(f"language-{size}-{name}.png")
            figure.savefig(folder / names[-1], facecolor="white")
    return names


def _figures(found: Found) -> Iterator[tuple[str, Figure]]:
    if REGULAR in found and len(found) > 1:
        yield "differences", _differences(found)
        yield "curves", _curves(found)
    detailed = {arm: run for arm, seeds in found.items() for run in seeds.values() if run.get("dial")}
    if detailed:
        yield "dial", _dial(detailed)
    entropy = next((run["inside"]["entropy"] for run in found.get(REGULAR, {}).values() if "inside" in run), None)
    if detailed and entropy is not None:
        yield "forks", _forks(detailed, entropy)


def _differences(found: Found) -> Figure:
    arms = [arm for arm in found if arm != REGULAR]
    figure, axes = _axes(0.3 * len(arms) + 1.3, f"Loss less that of {REGULAR} with the same seed")
    for place, arm in enumerate(arms):
        apart = list(differences(found, arm, REGULAR).values())
        axes.plot(apart, [place] * len(apart), "o", color=COLOURS[0], markersize=5, alpha=0.7, markeredgewidth=0)
        if (interval := t_interval(apart)) is not None:
            axes.plot(interval, [place, place], "-", color=COLOURS[3], linewidth=1.4)
    axes.axvline(0, color="#333", linewidth=0.8)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_xlabel("nats a token, to the left is better; dots: seeds, line: 95% t interval of the mean", fontsize=8.5)
    axes.invert_yaxis()
    return figure


def _curves(found: Found) -> Figure:
    figure, axes = _axes(4.0, f"Loss less that of {REGULAR}, rule blockwise, mean over seeds")
    regular = found[REGULAR]
    for (arm, seeds), colour in zip(_others(found), _colours(found), strict=False):
        shared = sorted(seeds.keys() & regular.keys())
        if not shared:
            continue
        steps = [step for step in seeds[shared[0]]["curve"] if step in regular[shared[0]]["curve"]]
        tokens = [int(step) * seeds[shared[0]]["tokens"] / max(map(int, steps)) / 1e6 for step in steps]
        gaps = [statistics.mean(seeds[s]["curve"][step] - regular[s]["curve"][step] for s in shared) for step in steps]
        axes.plot(tokens, gaps, "-o", color=colour, markersize=3, linewidth=1.2, label=arm)
    axes.axhline(0, color="#333", linewidth=0.8)
    axes.set_xlabel("million tokens", fontsize=8.5)
    axes.set_ylabel("nats a token, below 0 is better", fontsize=8.5)
    _legend(figure, axes)
    return figure


def _dial(detailed: Mapping[str, Result]) -> Figure:
    figure, axes = _axes(4.0, "Loss at each fork_ratio, rule causal, first seed")
    for (arm, run), colour in zip(detailed.items(), _colours(detailed), strict=True):
        axes.plot([float(ratio) for ratio in run["dial"]], list(run["dial"].values()), "-o", color=colour, markersize=3,
                  linewidth=1.2, label=arm)  # fmt: skip
    axes.set_xlabel("fork_ratio: streams a token that the budget allows", fontsize=8.5)
    axes.set_ylabel("loss (nats a token)", fontsize=8.5)
    _legend(figure, axes)
    return figure


def _forks(detailed: Mapping[str, Result], entropy: list[list[int]]) -> Figure:
    figure, axes = _axes(4.0, "Forks of a token by the entropy of a regular model after it")
    flat = np.concatenate([np.array(window) for window in entropy]) / 100
    parts = np.array_split(np.argsort(flat, kind="stable"), BINS)
    for (arm, run), colour in zip(detailed.items(), _colours(detailed), strict=True):
        forks = np.array([int(digit) for digit in "".join(run["inside"]["forks"])])
        axes.plot([flat[part].mean() for part in parts], [forks[part].mean() for part in parts], "-o", color=colour,
                  markersize=3, linewidth=1.2, label=arm)  # fmt: skip
    axes.set_xlabel("nats, bins of equally many tokens", fontsize=8.5)
    axes.set_ylabel("streams beside the original", fontsize=8.5)
    _legend(figure, axes)
    return figure


def _others(found: Found) -> list[tuple[str, Mapping[int, Result]]]:
    return [(arm, seeds) for arm, seeds in found.items() if arm != REGULAR]


def _colours(arms: Mapping[str, object]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(arms))]


def _legend(figure: Figure, axes: Axes) -> None:
    """Draw the legend beside the plot, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8.5)


def _axes(height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(labelsize=8.5, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes
