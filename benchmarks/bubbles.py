"""The picture of the README: how many streams each token of a text has after each fork layer.

python -m benchmarks.bubbles [TEXT] [--out docs/bubbles.png]     (needs matplotlib: the extra `plots`)
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt

from model import load_checkpoint, shipped_checkpoint

TEXT = (
    "The Congress shall have power to lay and collect taxes. It was a bright cold morning, and Emma had not yet"
    " decided whether the letter should be answered at all."
)


def main() -> None:
    """Draw a column of circles for each token, a row for each fork layer."""
    args = _arguments()
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint())
    ids = checkpoint.tokenizer.encode(args.text)
    with torch.inference_mode():
        _, forks = checkpoint.model(torch.tensor([ids]), return_forks=True)
    counts = {fork.layer: fork.token_index[0].bincount(minlength=len(ids))[: len(ids)].tolist() for fork in forks}
    tokens = [checkpoint.tokenizer.token_bytes(i).decode(errors="replace") for i in ids]
    draw(tokens, counts, args.out)


def draw(tokens: list[str], counts: dict[int, list[int]], out: Path) -> None:
    """Save the picture: circles grow with the streams of a token, their number stands inside."""
    mpl.rcParams["font.family"] = "DejaVu Sans"
    figure, axes = plt.subplots(figsize=(0.34 * len(tokens), 2.6), dpi=160)
    most = max(max(row) for row in counts.values())
    for y, (layer, row) in enumerate(counts.items(), start=1):
        axes.scatter(range(len(row)), [y] * len(row), s=[70 + 45 * n for n in row], c=row, cmap="YlGnBu", vmin=0,
                     vmax=1.4 * most, edgecolors="#335", linewidths=0.5)  # fmt: skip
        for x, n in enumerate(row):
            axes.text(x, y, str(n), ha="center", va="center", fontsize=6.5, color="white" if n > 0.7 * most else "#123")
        axes.text(-1.2, y, f"after the fork\nbefore layer {layer}", ha="right", va="center", fontsize=7)
    axes.set_xticks(range(len(tokens)), [t.replace(" ", "·") for t in tokens], rotation=60, ha="right", fontsize=7.5,
                    rotation_mode="anchor")  # fmt: skip
    axes.set(yticks=[], ylim=(0.4, len(counts) + 0.6), xlim=(-0.8, len(tokens) - 0.2))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(out, bbox_inches="tight", facecolor="white")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", nargs="?", default=TEXT)
    parser.add_argument("--checkpoint", help="checkpoint folder (the one that ships)")
    parser.add_argument("--out", type=Path, default=Path("docs/bubbles.png"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
