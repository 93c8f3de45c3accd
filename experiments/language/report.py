"""Write the results of the study as a page with tables and figures.

    python -m experiments.language.report RESULTS.jsonl [--study FILE] [--page docs/RESULTS.md]

Prints the page, or writes it, and its figures (language-curves, -differences, -dial and -forks.png) into images/ beside
it. Needs the extra `plots`.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from experiments.language.compare import by_arm
from experiments.language.measure import Evaluation
from experiments.language.page import Made, page
from experiments.runner.plan import read_study
from experiments.runner.results import read_results


def main() -> None:
    """Print or write the page."""
    args = _arguments()
    study, results = read_study(args.study, Evaluation), read_results(args.results)
    sizes = {size: found for size in study.sizes if (found := by_arm(study, size, results))}
    if not sizes:
        raise SystemExit(f"error: no reported result in {args.results} has the settings of {args.study}")
    folder = args.page.parent if args.page else Path("docs")
    command = shlex.join(["python", "-m", "experiments.language.report", *sys.argv[1:]])
    figures: list[str] = []
    if args.page:
        from experiments.language.figures import draw  # noqa: PLC0415 - only a page with figures needs matplotlib

        figures = draw(sizes, folder / "images")
    made = Made(Path(os.path.relpath(args.results, folder)).as_posix(), command)
    text = page(study, sizes, results, made, figures)
    if args.page:
        args.page.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--study", type=Path, default=Path("experiments/language/study.toml"))
    parser.add_argument("--page", type=Path, help="file to write, with figures in images/ beside it (needs matplotlib)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
