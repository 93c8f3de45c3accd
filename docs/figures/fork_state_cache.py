"""Draw the figure of docs/FORK_STATE_CACHE.md: cached streams of a real text, and how a prefix is shared.

python -m docs.figures.fork_state_cache [TEXT] [--out docs/fork-state-cache]     (needs matplotlib: the extra `plots`)
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from thoughtbubbles.model import Fork, load_checkpoint, shipped_checkpoint

TEXT = "The river rises in the mountains of northern Spain and flows"
RATIO = 1.5
PAGE = 8
"""Streams of a page, in the figure."""
CUT = 6
"""Length of the prefix that another request shares."""
THEMES = {
    "light": {"ink": "#1f2328", "faint": "#8c959f", "original": "#54749c", "fork": "#a9c5e8", "new": "#e8833a"},
    "dark": {"ink": "#e6edf3", "faint": "#848d97", "original": "#5b80b0", "fork": "#2f4a6d", "new": "#e8833a"},
}


@dataclass(frozen=True)
class Row:
    """The streams of one segment."""

    layers: range
    tokens: list[int]
    """Token of each stream, from left to right."""
    survivors: set[int] | None
    """Surviving candidates, of 2i and 2i + 1 for each stream i; None if no fork follows."""


def main() -> None:
    """Draw the figure for light and for dark pages."""
    args = _arguments()
    checkpoint = load_checkpoint(shipped_checkpoint())
    ids = checkpoint.tokenizer.encode(args.text)
    with torch.inference_mode():
        _, forks = checkpoint.model(torch.tensor([ids]), rule="causal", ratio=RATIO, return_forks=True)
    rows = _rows(len(ids), forks, checkpoint.model.config.n_layer)
    texts = [checkpoint.tokenizer.decode([i]).strip() for i in ids]
    for name, theme in THEMES.items():
        draw(texts, rows, theme).savefig(
            f"{args.out}-{name}.svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )


def draw(texts: list[str], rows: list[Row], theme: dict[str, str]) -> Figure:
    """Return the figure: segments from top to bottom, tokens from left to right, then pages of the second segment."""
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 8, "text.color": theme["ink"], "svg.hashsalt": "0"})
    figure, axes = plt.subplots(figsize=(10.5, 6.4))
    starts = _columns(rows, len(texts))
    for (start, end), text in zip(pairwise(starts), texts, strict=True):
        axes.text((start + end - 0.8) / 2, 1.2, text, ha="center", fontsize=9)
    for i, row in enumerate(rows):
        _segment(axes, -3.6 * i, row, starts, theme)
    _legend(axes, -3.6 * len(rows) + 1, theme)
    _pages(axes, -3.6 * len(rows) - 1.4, rows[1].tokens, theme)
    axes.set(xlim=(-8.5, starts[-1] + 0.5), ylim=(-3.6 * len(rows) - 7, 2.2), aspect="equal")
    axes.set_axis_off()
    return figure


def _rows(tokens: int, forks: Sequence[Fork], layers: int) -> list[Row]:
    bounds = [0, *(fork.layer for fork in forks), layers]
    streams = [list(range(tokens)), *(fork.token_index[0].tolist() for fork in forks)]
    survivors = [*(set(fork.candidate[0].tolist()) for fork in forks), None]
    return [
        Row(range(first, end), [t for t in present if t < tokens], living)
        for (first, end), present, living in zip(pairwise(bounds), streams, survivors, strict=True)
    ]


def _columns(rows: list[Row], tokens: int) -> list[float]:
    """Return where each token begins and the last ends; a token is as wide as its widest bubble."""
    starts = [0.0]
    for token in range(tokens):
        starts.append(starts[-1] + max(row.tokens.count(token) for row in rows) + 0.8)
    return starts


def _segment(axes: Axes, y: float, row: Row, starts: list[float], theme: dict[str, str]) -> None:
    """Draw a square for each stream; below it its two candidates, the fork copy and the original kept."""
    layers = f"layers {row.layers[0]}–{row.layers[-1]}" if len(row.layers) > 1 else f"layer {row.layers[0]}"
    axes.text(-1, y + 0.4, f"{layers}: keys, values\nof {len(row.tokens)} streams", ha="right", va="center")
    for i, token in enumerate(row.tokens):
        x = starts[token] + i - row.tokens.index(token)
        axes.add_patch(Rectangle((x, y), 0.9, 0.9, color=_colour(row.tokens, i, theme), linewidth=0))
        if row.survivors is not None:
            for at, candidate in ((0.22, 2 * i), (0.68, 2 * i + 1)):
                lives = candidate in row.survivors
                axes.plot(x + at, y - 0.65, "o" if lives else "x", color=theme["ink" if lives else "faint"],
                          markersize=3.2, markeredgewidth=0.8)  # fmt: skip
    if row.survivors is not None:
        axes.text(-1, y - 0.65, "candidate scores", ha="right", va="center", color=theme["faint"])
        axes.annotate("", (-0.4, y - 2.3), (-0.4, y - 1.1), arrowprops={"arrowstyle": "->", "color": theme["faint"]})
        axes.text(0, y - 1.75, f"fork before layer {row.layers[-1] + 1}", va="center", color=theme["faint"], fontsize=7)


def _legend(axes: Axes, y: float, theme: dict[str, str]) -> None:
    told = {"original": "original", "fork": "fork", "new": "of the newest token: all that its step computes"}
    for x, (name, text) in zip((0, 5, 9), told.items(), strict=True):
        axes.add_patch(Rectangle((x, y), 0.9, 0.9, color=theme[name], linewidth=0))
        axes.text(x + 1.3, y + 0.4, text, va="center")
    for x, marker, colour, text in ((26, "o", "ink", "survives"), (31, "x", "faint", "deleted, its score kept")):
        axes.plot(x, y + 0.42, marker, color=theme[colour], markersize=3.2, markeredgewidth=0.8)
        axes.text(x + 0.7, y + 0.4, text, va="center")


def _pages(axes: Axes, y: float, tokens: list[int], theme: dict[str, str]) -> None:
    """Draw one segment's pages of two requests, the second of which shares a prefix with the first."""
    cut = sum(token < CUT for token in tokens)
    whole = cut // PAGE * PAGE
    axes.text(-8, y + 0.2, "pages of one segment: where the second row's streams lie", fontsize=9)
    for row, (label, streams) in enumerate((("a request", len(tokens)), (f"another: the same {CUT} tokens", cut))):
        top = y - 2 - 2.4 * row
        axes.text(-1, top + 0.45, label, ha="right", va="center")
        for page in range(-(-streams // PAGE)):
            shared = row and page * PAGE < whole
            axes.add_patch(Rectangle((page * (PAGE + 0.7) - 0.1, top - 0.1), PAGE + 0.1, 1.1, fill=False,
                                     edgecolor=theme["faint"], linestyle=":" if shared else "-"))  # fmt: skip
            if row:
                told = "the same page, counted" if shared else "a copy, to go on in"
                axes.text(
                    page * (PAGE + 0.7) + PAGE / 2, top - 0.7, told, ha="center", color=theme["faint"], fontsize=7
                )
        for i in range(streams):
            if not row or i >= whole:
                x = i + i // PAGE * 0.7
                axes.add_patch(Rectangle((x, top), 0.9, 0.9, color=_colour(tokens, i, theme, new=not row), linewidth=0))
                axes.text(x + 0.45, top + 0.42, str(tokens[i]), ha="center", va="center", fontsize=6)


def _colour(tokens: list[int], i: int, theme: dict[str, str], *, new: bool = True) -> str:
    if new and tokens[i] == tokens[-1]:
        return theme["new"]
    original = i + 1 == len(tokens) or tokens[i + 1] != tokens[i]
    return theme["original" if original else "fork"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", nargs="?", default=TEXT)
    parser.add_argument("--out", type=Path, default=Path("docs/fork-state-cache"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
