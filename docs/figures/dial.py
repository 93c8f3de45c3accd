"""The figure of `benchmarks.engine.dial`: loss by streams per token, and tokens/s by `fork_ratio`.

python -m docs.figures.dial [RESULT] [--out docs/images/dial.png]     (needs matplotlib: the extra `plots`)
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

COLOURS = ("#54749c", "#e8833a", "#5a8f5a", "#8c6bb1")
TICKS = (1, 1.5, 2, 3, 4, 8)
FIRST_SPEED, SPEED_COLUMNS = 6, 3
"""In the table: where the tokens/s of the first batch size are, and how many columns each batch size has."""


def main() -> None:
    """Draw the figure of a result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("result", nargs="?", type=Path, default=Path("benchmarks/results/dial-cpu.txt"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/dial.png"))
    args = parser.parse_args()
    text = args.result.read_text(encoding="utf-8")
    rows = [[float(cell) for cell in line.split()] for line in text.splitlines() if re.fullmatch(r"[\d .+-]+", line)]
    draw(rows, [int(size) for size in re.findall(r"batch (\d+):", text)]).savefig(args.out)


def draw(rows: Sequence[Sequence[float]], batch_sizes: Sequence[int]) -> Figure:
    """Return the figure of the rows of a result's table, one for each ratio."""
    ratios, points = [row[0] for row in rows], [(row[1], row[2]) for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), dpi=160, layout="constrained")
    _prepare(left, "Loss, nats per token, at each fork_ratio", "streams per token after the last fork layer")
    left.plot(*zip(*points, strict=True), "o-", color=COLOURS[0], markersize=5)
    for ratio, point in zip(ratios, points, strict=True):
        left.annotate(f"{ratio:g}", point, (6, 5), textcoords="offset points", fontsize=9)
    _prepare(right, "Decoded tokens/s", "fork_ratio")
    for i, n in enumerate(batch_sizes):
        colour, line = COLOURS[i % len(COLOURS)], [row[FIRST_SPEED + i * SPEED_COLUMNS] for row in rows]
        right.plot(ratios, line, "o-", color=colour, markersize=5)
        right.annotate(f"batch {n}", (ratios[0], line[0]), (0, 8), textcoords="offset points", color=colour, fontsize=9)
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    right.margins(y=0.15)
    return figure


def _prepare(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, pad=10)
    axes.set_xlabel(below, fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.tick_params(labelsize=9, which="both", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e7ea", linewidth=0.7)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    main()
