"""The figure of `benchmarks.engine.dial`: loss by streams per token, tokens/s by `fork_ratio`. Needs matplotlib."""

from collections.abc import Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

COLOURS = ("#54749c", "#e8833a", "#5a8f5a", "#8c6bb1")
TICKS = (1, 1.5, 2, 3, 4, 8)


def draw(
    ratios: Sequence[float], points: Sequence[tuple[float, float]], speeds: Sequence[Mapping[int, float]]
) -> Figure:
    """For each ratio its streams per token and loss, and its tokens/s at each batch size."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), dpi=160, layout="constrained")
    _prepare(left, "Loss, nats per token, at each fork_ratio", "streams per token after the last fork layer")
    left.plot(*zip(*points, strict=True), "o-", color=COLOURS[0], markersize=5)
    for ratio, point in zip(ratios, points, strict=True):
        left.annotate(f"{ratio:g}", point, (6, 5), textcoords="offset points", fontsize=9)
    _prepare(right, "Decoded tokens/s", "fork_ratio")
    for i, n in enumerate(speeds[0]):
        colour, line = COLOURS[i % len(COLOURS)], [speed[n] for speed in speeds]
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
