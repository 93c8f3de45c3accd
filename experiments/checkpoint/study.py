"""Which checkpoint does the repository ship? Train and measure what has no result yet.

    python -m experiments.checkpoint.study [--study FILE] [--data data/checkpoint] [--out runs/checkpoint]
                                           [--results benchmarks/results/checkpoint.jsonl] [--jobs 6] [--seconds 540]

`experiments.runner.study` says what is run, stopped and resumed. The checkpoints of reported runs stay in OUT.
"""

import sys

from experiments.checkpoint.measure import Evaluation
from experiments.runner.study import run_study


def main() -> int:
    """Run what has no result yet; return 0, or 1 if a run failed."""
    return run_study("checkpoint", Evaluation)


if __name__ == "__main__":
    sys.exit(main())
