"""Do forks help where a problem is harder? Train and measure what has no result yet.

    python -m experiments.tasks.study [--study FILE] [--data data/tasks] [--out runs/tasks]
                                      [--results benchmarks/results/tasks.jsonl] [--jobs 6] [--seconds 540]

`experiments.runner.study` says what is run, stopped and resumed.
"""

import sys

from experiments.runner.study import run_study
from experiments.tasks.measure import Evaluation


def main() -> int:
    """Run what has no result yet; return 0, or 1 if a run failed."""
    return run_study("tasks", Evaluation)


if __name__ == "__main__":
    sys.exit(main())
