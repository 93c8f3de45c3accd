"""Say of a size's arms what they are, what they cost, and which learning rates they have."""

from collections.abc import Mapping, Sequence

from experiments.runner.comparison import Comparison, count_tested, errors_needed
from experiments.runner.found import REGULAR, Found
from experiments.runner.markdown import NONE, table
from experiments.runner.plan import Result, Study

TUNING = "Loss after the short horizon, one seed, by learning rate; × diverged, – not run."


def about(found: Found) -> str:
    """Return a size's model and training in words."""
    first = next(iter(found.get("2l", next(iter(found.values()))).values()))
    model = first["settings"]["model"]
    return (
        f"{model['n_layer']} layers of {model['n_embd']}, blocks of {model['block_size']} tokens,"
        f" {first['parameters'] / 1e6:.1f}M parameters, {first['tokens'] / 1e6:.1f}M tokens"
    )


def power(comparisons: Sequence[Comparison]) -> str:
    """Return what differences the tests can find."""
    tests = count_tested(comparisons)
    if not tests:
        return "No claim has two seeds yet, so that none has an interval over seeds or a test."
    needed = "; ".join(
        f"with {seeds} seeds {errors_needed(seeds, tests):.1f} if it is the clearest of these, and"
        f" {errors_needed(seeds, 1):.1f} if it is the last"
        for seeds in sorted({len(each.apart) for each in comparisons if each.p is not None})
    )
    return (
        f"Claims with two seeds or more: {tests} of {len(comparisons)}; Holm's correction runs over these. To hold, a"
        f" difference must be so many standard errors from 0: {needed}. Only large or very steady differences can pass."
    )


def operations(found: Found, seeds: Mapping[int, Result]) -> str:
    """Return an arm's operations of learning from a token, as a multiple of those of `regular`."""
    base = next((run["flops_per_token"] for run in found.get(REGULAR, {}).values()), None)
    return NONE if base is None else f"{next(iter(seeds.values()))['flops_per_token'] / base:.2f}"


def rate(study: Study, size: str, arm: str, results: Sequence[Result]) -> str:
    """Return an arm's learning rate; ! marks one at an end of the grid."""
    rates = sorted(run.training.learning_rate for run in study.tuning_runs(size, arm))
    best = study.best_rate(size, arm, results)
    return f"{best:g}{' !' if best in (rates[0], rates[-1]) else ''}"


def tuning(study: Study, size: str, results: Sequence[Result]) -> str:
    """Return the table of a size's short runs by learning rate, and what it shows; "Not run." without results."""
    arms = {arm for stage in study.stages if stage.size == size for arm in stage.arms}
    rates, rows = study.sizes[study.sizes[size].tuned_at or size].rates or [], []
    for arm in (each for each in study.arms if each in arms):
        found = [run.find(results) for run in study.tuning_runs(size, arm)]
        if any(found):
            rows.append((f"`{arm}`", *map(short_loss, found)))
    if not rows:
        return "Not run."
    return f"{table(('arm', *(f'{each:g}' for each in rates)), rows)}\n\n{TUNING}"


def short_loss(result: Result | None) -> str:
    """Return the loss of a run; × if it diverged, a dash without a result."""
    if result is None:
        return NONE
    return "×" if result["loss"] is None else f"{result['loss']:.4f}"
