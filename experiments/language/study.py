"""When do forks help language modelling? Train and measure what has no result yet.

    python -m experiments.language.study [--study FILE] [--data data/language] [--out runs/language]
                                         [--results benchmarks/results/language.jsonl] [--jobs 6] [--seconds 540]

`experiments.runner.study` says what is run, stopped and resumed.
"""

import sys

from experiments.language.measure import Evaluation
from experiments.runner.study import run_study


def main() -> int:
    """Run what has no result yet; return 0, or 1 if a run failed."""
    return run_study("language", Evaluation)


if __name__ == "__main__":
    sys.exit(main())
