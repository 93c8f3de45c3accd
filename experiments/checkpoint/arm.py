"""Train and measure one run of `experiments.checkpoint.study`; see `experiments.runner.arm`."""

from experiments.checkpoint.measure import Evaluation, measure_final, measure_tuning
from experiments.runner.arm import Measures, train_and_measure


def main() -> None:
    """Train and measure the run that the arguments name, and keep its checkpoint if it is reported."""
    train_and_measure(Measures(Evaluation, measure_tuning, measure_final, keep=True))


if __name__ == "__main__":
    main()
