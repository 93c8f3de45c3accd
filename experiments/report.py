"""Write the page of results of the studies, its figures, and the finding in README.md and the model card.

    python -m experiments.report [--language FILE] [--tasks FILE] [--checkpoint FILE] [--present FILE] [--write]
                                 [--root FOLDER]

Prints the page; with --write it rewrites docs/RESULTS.md, its figures in docs/images/ (needs the extra `plots`), and
what stands between the lines `<!-- finding -->` and `<!-- end of the finding -->` of the other two.
"""

import argparse
import textwrap
from pathlib import Path

from experiments.checkpoint.decide import read_present
from experiments.checkpoint.page import part as shipped
from experiments.page import page
from experiments.part import Part, parts
from experiments.runner.results import read_results
from experiments.summary import CARD, README, finding

PAGE = Path("docs/RESULTS.md")
BEGIN, END = "<!-- finding -->\n", "<!-- end of the finding -->\n"
MARKED = {Path("README.md"): README, Path("checkpoints/thoughtbubbles-11m/README.md"): CARD}
"""Files that have the finding, and how each names the page."""


def main() -> None:
    """Print or write the page."""
    args = _arguments()
    both = parts(read_results(args.language), read_results(args.tasks))
    text = page(both, shipped(read_results(args.checkpoint), read_present(args.present)))
    if not args.write:
        print(text, end="")
        return
    _draw(both, args.root / PAGE.parent / "images")
    (args.root / PAGE).write_text(text, encoding="utf-8")
    for path, links in MARKED.items():
        _replace(args.root / path, finding(both, links))


def _draw(both: list[Part], folder: Path) -> None:
    from experiments.language.figures import figures as language  # noqa: PLC0415 - only figures need matplotlib
    from experiments.runner.figures import save  # noqa: PLC0415
    from experiments.tasks.figures import figures as tasks  # noqa: PLC0415

    for part, figures in zip(both, (language, tasks), strict=True):
        for size, found in part.sizes.items():
            save(figures(size, found, list(part.study.arms)), folder)


def _replace(path: Path, text: str) -> None:
    """Put `text` between the marks of a file. `ValueError` if it does not have both."""
    old = path.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        raise ValueError(f"{path}: needs one line {BEGIN.strip()!r} and one {END.strip()!r}")
    before, rest = old.split(BEGIN)
    path.write_text(
        f"{before}{BEGIN}\n{textwrap.fill(text, 130, break_on_hyphens=False)}\n\n{END}{rest.split(END)[1]}",
        encoding="utf-8",
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--language", type=Path, default=Path("benchmarks/results/language.jsonl"))
    parser.add_argument("--tasks", type=Path, default=Path("benchmarks/results/tasks.jsonl"))
    parser.add_argument("--checkpoint", type=Path, default=Path("benchmarks/results/checkpoint.jsonl"))
    parser.add_argument("--present", type=Path, default=Path("benchmarks/results/checkpoint-present.json"))
    parser.add_argument("--write", action="store_true", help="rewrite the page, its figures and the finding")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of the repository (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
