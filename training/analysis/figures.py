"""Draw the four figures from the rows that are also written as CSV (needs matplotlib: the extra `plots`)."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thoughtbubbles.training.analysis.attention import KEYS, AttentionRow
from thoughtbubbles.training.analysis.budget import BudgetRow, ScoreRow
from thoughtbubbles.training.analysis.study import ForkMap
from thoughtbubbles.training.analysis.tokens import Bin

ORIGINAL, FORK, OWN = "#4c6a92", "#e08a2e", "#c1443c"
_COLOURS = dict(zip(KEYS, ("#9aa3ad", OWN, "#e6a68f", ORIGINAL, FORK), strict=True))
_TOKENS_A_ROW = 24


def draw_entropy(bins: Sequence[Bin], path: Path) -> None:
    """Draw figure 5: mean forks of tokens with similar entropy, by this model's entropy and by a regular model's."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for by, whose, colour, line in (
        ("this model", "this model's", FORK, "-"),
        ("regular model", "a regular model's", ORIGINAL, "--"),
    ):
        if part := [each for each in bins if each.by == by]:
            x, y, error = zip(*((each.entropy, each.forks, 1.96 * each.error) for each in part), strict=True)
            axes.errorbar(x, y, error, color=colour, fmt=f"o{line}", capsize=2, label=f"by {whose} entropy")
    tokens = sum(each.tokens for each in bins if each.by == "this model")
    axes.set_title(
        f"Forks against uncertainty\n{tokens:,} tokens in bins of equal size; bars: 95% of the mean", fontsize=10
    )
    axes.set(xlabel="entropy of the next token (nats)", ylabel="forks per token, after the last fork layer")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower center")
    _clean(axes)
    _save(figure, path)


def draw_attention(rows: Sequence[AttentionRow], path: Path) -> None:
    """Draw figure 4: the attention of originals to each kind of stream; left in total, right per stream."""
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    shares, each = figure.subplots(1, 2)
    own = [row for row in rows if row.queries == "originals"]
    layers = sorted({row.layer for row in own})
    bottom = np.zeros(len(layers))
    for keys in KEYS:
        part = sorted(row for row in own if row.keys == keys)
        share = np.array([row.share for row in part])
        shares.bar(layers, share, 0.8, bottom=bottom, color=_COLOURS[keys], label=keys)
        bottom += share
        each.plot(layers, [row.per_stream for row in part], color=_COLOURS[keys], marker="o", markersize=4, label=keys)
    shares.set(xlabel="layer", ylabel="share of attention", title="What originals attend to", ylim=(0, 1))
    each.set(xlabel="layer", ylabel="attention to one such stream (log)", yscale="log",
             title="… and each single stream of the kind")  # fmt: skip
    for axes in (shares, each):
        _clean(axes)
        axes.set_xticks(layers)
    figure.legend(*shares.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    _save(figure, path)


def draw_map(found: ForkMap, layers: int, path: Path) -> None:
    """Draw figure 7: the text in rows, with the forks of each token in every layer above it."""
    starts = range(0, len(found.tokens), _TOKENS_A_ROW)
    figure = Figure(figsize=(11, 2.6 * len(starts)), layout="constrained")
    figure.suptitle("Forks of each token, from one fork layer to the next (·: none)", fontsize=11)
    most = max(1, *(max(row) for row in found.forks.values()))
    for axes, start in zip(figure.subplots(len(starts), 1, squeeze=False)[:, 0], starts, strict=True):
        _draw_map_row(axes, found, start, layers, most)
    _save(figure, path)


def _draw_map_row(axes: Axes, found: ForkMap, start: int, layers: int, most: int) -> None:
    tokens = found.tokens[start : start + _TOKENS_A_ROW]
    edges = [*found.forks, layers]
    counts = np.array([row[start : start + _TOKENS_A_ROW] for row in found.forks.values()])
    axes.pcolormesh(np.arange(len(tokens) + 1), edges, counts, cmap="YlOrBr", vmin=0, vmax=most, edgecolors="white",
                    linewidth=1.0)  # fmt: skip
    for row, (low, high) in zip(counts, pairwise(edges), strict=True):
        for x, forks in enumerate(row):
            axes.text(x + 0.5, (low + high) / 2, str(forks) if forks else "·", ha="center", va="center", fontsize=7,
                      color="white" if forks > 0.6 * most else "#333")  # fmt: skip
    axes.set_xticks(np.arange(len(tokens)) + 0.5, [_visible(token) for token in tokens], rotation=45, ha="right",
                    rotation_mode="anchor", fontsize=8)  # fmt: skip
    axes.set_yticks(edges, [f"{edge}" for edge in edges], fontsize=8)
    axes.set(xlim=(0, _TOKENS_A_ROW), ylim=(edges[0], layers), ylabel="layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_layers(budget: Sequence[BudgetRow], scores: Sequence[ScoreRow], path: Path) -> None:
    """Draw for each fork layer the distribution of P = exp(c) (left) and the use of the budget (right)."""
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions = {row.layer: position for position, row in enumerate(budget)}
    for name, shift, colour in (("originals", -0.2, ORIGINAL), ("forks", 0.2, FORK)):
        part = [row for row in scores if row.streams == name and row.number]
        if part:  # without budget for forks there are none
            left.bxp([_box(row) for row in part], positions=[positions[row.layer] + shift for row in part], widths=0.34,
                     showfliers=False, patch_artist=True, boxprops={"facecolor": colour, "alpha": 0.75},
                     medianprops={"color": "black"})  # fmt: skip
        left.bar(0, 0, color=colour, label=name)  # for the legend
    left.set(ylabel="P = exp(c)", ylim=(0, 1.02), title="Score: box 25–75%, whiskers 5–95%")
    _draw_budget(right, budget)
    for axes in (left, right):
        _clean(axes)
        axes.set_xticks(range(len(budget)), [f"before layer {row.layer}" for row in budget])
        axes.set_xlim(-0.6, len(budget) - 0.4)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.1), ncols=3)
    _save(figure, path)


def _draw_budget(axes: Axes, budget: Sequence[BudgetRow]) -> None:
    positions = np.arange(len(budget))
    forks = np.array([(row.streams - row.tokens) / row.tokens for row in budget])
    unused = np.array([(row.budget - row.streams) / row.tokens for row in budget])
    axes.bar(positions, 1, 0.6, color=ORIGINAL, label="originals")
    axes.bar(positions, forks, 0.6, bottom=1, color=FORK, label="forks")
    axes.bar(positions, unused, 0.6, bottom=1 + forks, color="none", edgecolor="#888", linestyle="--", label="unused")
    for position, row in enumerate(budget):
        text = f"{row.streams / row.budget:.1%} used\n{row.copies:,} forks made\n{row.deleted:,} deleted"
        axes.text(position, row.budget / row.tokens + 0.03, text, ha="center", va="bottom", fontsize=7.5)
    axes.set(ylabel="streams per token", title="Budget")
    axes.set_ylim(top=max(row.budget / row.tokens for row in budget) * 1.2)


def _box(row: ScoreRow) -> dict[str, Any]:
    return {"whislo": row.p05, "q1": row.p25, "med": row.p50, "q3": row.p75, "whishi": row.p95}


def _visible(token: str) -> str:
    """Return `token` with visible spaces and line ends, and with `$` escaped, which would start a formula."""
    return token.replace(" ", "␣").replace("\n", "↵").replace("$", r"\$")


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=160, facecolor="white")
