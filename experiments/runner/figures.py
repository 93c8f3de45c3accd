"""Axes, colours and legends of the figures of a study's page. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b")
"""Distinct for people with any common colour blindness (Okabe and Ito); markers and dashes differ as well."""
MARKERS = "osD^vPX"
SMALL = 8.5
"""Size of all text but titles."""


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write figures as PNG files with these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, facecolor="white", metadata={"Software": None})


def panels(
    shape: tuple[int, int], size: tuple[float, float], *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure of rows and columns of prepared axes, row by row; `size` in inches."""
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    made = figure.subplots(*shape, squeeze=False, sharex=sharex, sharey=sharey)
    for axes in made.flat:
        axes.tick_params(labelsize=SMALL, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e5e5", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, list(made.flat)


def line(axes: Axes, x: Sequence[float], y: Sequence[float], arm: str, arms: Sequence[str]) -> None:
    """Draw an arm's line in the style that is its own in all figures; `arms` are all arms of the study."""
    place = list(arms).index(arm)
    axes.plot(x, y, color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)], markersize=4,
              linestyle="-" if place < len(COLOURS) else (0, (4, 2)), linewidth=1.3, label=arm)  # fmt: skip


def label(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Set a title and the names of the axes."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x, fontsize=SMALL)
    axes.set_ylabel(y, fontsize=SMALL)


def legend(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """Draw the legend of `axes` beside the plots, where it hides nothing."""
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False, fontsize=SMALL, title=title,
                  title_fontsize=SMALL)  # fmt: skip


def spread_rows(axes: Axes, rows: Mapping[str, Sequence[float]], intervals: Mapping[str, tuple[float, float]]) -> None:
    """Draw each row's values as dots, and its interval as a line beneath them."""
    for place, (name, values) in enumerate(rows.items()):
        if name in intervals:
            axes.plot(intervals[name], [place, place], "-", color=COLOURS[1], linewidth=1.6, solid_capstyle="butt")
        axes.plot(values, [place] * len(values), "o", color=COLOURS[0], markersize=5, alpha=0.75, markeredgewidth=0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
