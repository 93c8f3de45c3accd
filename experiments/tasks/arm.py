"""Train and measure one run of `experiments.tasks.study`; see `experiments.runner.arm`."""

from experiments.runner.arm import Measures, train_and_measure
from experiments.tasks.measure import Evaluation, measure_final, measure_tuning


def main() -> None:
    """Train and measure the run that the arguments name."""
    train_and_measure(Measures(Evaluation, measure_tuning, measure_final))


if __name__ == "__main__":
    main()
