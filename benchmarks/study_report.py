"""What `benchmarks.study` found, as a page with tables and figures.

    python -m benchmarks.study_report RESULTS.jsonl [--study benchmarks/study.toml] [--page docs/RESULTS.md]

Prints the page, or writes it, and its figures (study-differences, -cost, -rules and -dial.png) into images/ beside it,
which needs the extra `plots`. A study-entropy.png that is there already is shown too: forks
against entropy, which `thoughtbubbles analyse` drew of two of the study's models.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from benchmarks.study_compare import by_arm
from benchmarks.study_page import ENTROPY_FIGURE, page
from benchmarks.study_plan import read_study
from benchmarks.study_results import read_results


def main() -> None:
    """Print or write the page."""
    args = _arguments()
    study, results = read_study(args.study), read_results(args.results)
    found = by_arm(study, results)
    if not found:
        raise SystemExit(f"error: no result in {args.results} has the settings of {args.study}")
    folder = args.page.parent if args.page else Path("docs")
    command = shlex.join(["python", "-m", "benchmarks.study_report", *sys.argv[1:]])
    entropy = (folder / "images" / ENTROPY_FIGURE).exists()
    text = page(study, found, Path(os.path.relpath(args.results, folder)).as_posix(), command, entropy=entropy)
    if not args.page:
        print(text, end="")
        return
    from benchmarks import study_figures  # noqa: PLC0415 - only who draws needs matplotlib

    study_figures.draw(study, found, folder / "images")
    args.page.write_text(text, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--study", type=Path, default=Path("benchmarks/study.toml"))
    parser.add_argument("--page", type=Path, help="file to write, with figures in images/ beside it (needs matplotlib)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
