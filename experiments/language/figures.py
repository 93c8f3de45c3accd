"""Draw the figures of the page's part on language. Needs matplotlib."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.language.compare import differences, gaps_by_tokens
from experiments.language.page import detailed, figure_names, forking, forks_of, regular_entropy
from experiments.runner.figures import label, legend, line, panels, spread_rows
from experiments.runner.found import REGULAR, Found
from experiments.runner.intervals import t_interval

BINS = 12
"""Bins of equally many tokens by entropy."""
BETTER = "nats a token, below 0 is better"


def figures(size: str, found: Found, arms: Sequence[str]) -> dict[str, Figure]:
    """Return a size's figures by file name; `arms` are all of the study."""
    return {file: DRAWN[name](found, arms) for name, file in figure_names(size, found).items()}


def _differences(found: Found, _arms: Sequence[str]) -> Figure:
    rows = {arm: list(apart.values()) for arm in found if arm != REGULAR
            and (apart := differences(found, arm, REGULAR))}  # fmt: skip
    figure, [axes] = panels((1, 1), (7.2, 0.3 * len(rows) + 1.3))
    spread_rows(axes, rows, {arm: ends for arm, apart in rows.items() if (ends := t_interval(apart))})
    axes.axvline(0, color="#333", linewidth=0.8)
    label(axes, f"Loss less that of {REGULAR} with the same seed, rule causal",
          "nats a token, left of 0 is better; dots: seeds, line: 95% t interval of the mean")  # fmt: skip
    return figure


def _curves(found: Found, arms: Sequence[str]) -> Figure:
    figure, [axes] = panels((1, 1), (7.2, 4.2))
    for arm in found:
        if arm != REGULAR and (gaps := gaps_by_tokens(found, arm)):
            line(axes, list(gaps), list(gaps.values()), arm, arms)
    axes.axhline(0, color="#333", linewidth=0.8)
    label(axes, f"Loss less that of {REGULAR} during training, mean over seeds", "million tokens learned from", BETTER)
    legend(figure, axes)
    return figure


def _dial(found: Found, arms: Sequence[str]) -> Figure:
    figure, [axes] = panels((1, 1), (7.2, 4.2))
    for arm, run in detailed(found).items():
        line(axes, [float(ratio) for ratio in run["dial"]], list(run["dial"].values()), arm, arms)
    label(axes, "Loss at each fork_ratio, rule causal, first seed",
          "fork_ratio: streams a token that the budget allows", "loss (nats a token)")  # fmt: skip
    legend(figure, axes)
    return figure


def _forks(found: Found, arms: Sequence[str]) -> Figure:
    figure, [axes] = panels((1, 1), (7.2, 4.2))
    entropy = regular_entropy(found)
    assert entropy is not None  # figure_names names this figure only then
    parts = np.array_split(np.argsort(entropy, kind="stable"), BINS)
    for arm, run in forking(found).items():
        forks = forks_of(run)
        line(axes, [entropy[part].mean() for part in parts], [forks[part].mean() for part in parts], arm, arms)
    label(axes, "Forks of a token by the entropy of a regular model after it",
          "nats, bins of equally many tokens", "streams beside the original")  # fmt: skip
    legend(figure, axes)
    return figure


DRAWN: Mapping[str, Callable[[Found, Sequence[str]], Figure]] = {
    "differences": _differences, "curves": _curves, "dial": _dial, "forks": _forks,
}  # fmt: skip
