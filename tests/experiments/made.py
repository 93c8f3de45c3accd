"""Results of the committed studies, made by hand, for the page and its figures."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from experiments.runner.plan import Run, Study
from tests.experiments.harness import result
from thoughtbubbles.training.synthetic import TASKS

WHERE = {"machine": "a machine", "torch": "2", "date": "2026-01-01", "seconds": 1800}
BEST = 2e-3
DOCUMENTS = [100, 50, 200, 150]
"""Tokens of each document."""
Value = Callable[[str, int], float]
"""What an arm and a seed have."""


def tuning(study: Study, size: str, arms: Iterable[str]) -> list[dict[str, Any]]:
    """Return the short runs of arms, whose best rate is 0.002."""
    runs = [run for arm in arms for run in study.tuning_runs(size, arm)]
    return [result(run, 4.5 + abs(np.log(run.training.learning_rate / BEST)) / 10, **WHERE) for run in runs]


def language(study: Study, size: str, losses: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the results of a size, of arms with these losses by seed."""
    runs = [(study.run(size, arm, "final", seed, BEST), loss) for arm, of in losses.items() for seed, loss in
            enumerate(of)]  # fmt: skip
    return tuning(study, size, losses) + [_language(run, loss) for run, loss in runs]


def _language(run: Run, loss: float) -> dict[str, Any]:
    tokens, steps = np.array(DOCUMENTS), run.training.steps
    curve = {str(steps * i // 8): loss + 1 / i for i in range(1, 9)}
    own = {"documents": (tokens * loss).tolist(), "document_tokens": DOCUMENTS, "blockwise": loss,
           "other": {"loss": loss + 0.3}, "curve": curve}  # fmt: skip
    sizes = {"tokens": run.tokens, "parameters": 24_400_000, "flops_per_token": run.operations / run.tokens}
    return result(run, loss, **WHERE, **own, **sizes, **(_details(run, loss) if run.seed == 0 else {}))


def _details(run: Run, loss: float) -> dict[str, Any]:
    entropy = [[10 * i for i in range(16)]] * 2
    if not run.model.fork_layers:
        return {"rules": {"causal": loss}, "dial": {}, "inside": {"entropy": entropy}}
    budget = [{"layer": layer, "tokens": 32, "budget": 64, "streams": 48} for layer in run.model.fork_layers]
    scores = [{"layer": layer, "streams": of, "mean": 0.5} for layer in run.model.fork_layers
              for of in ("originals", "forks")]  # fmt: skip
    inside = {"entropy": entropy, "forks": ["0110010101010111"] * 2, "budget": budget, "scores": scores}
    rules = dict.fromkeys(("blockwise", "dynamic", "fixed", "causal"), loss)
    return {"rules": rules, "dial": {"1": loss + 0.1, "2": loss, "4": loss - 0.01}, "inside": inside}


def tasks(study: Study, size: str, seeds: dict[str, list[int]], errors: Value) -> list[dict[str, Any]]:
    """Return the results of a size, of arms with these seeds and mean errors."""
    runs = [study.run(size, arm, "final", seed, BEST) for arm, of in seeds.items() for seed in of]
    return tuning(study, size, seeds) + [_tasks(study, run, errors(run.arm, run.seed)) for run in runs]


def _tasks(study: Study, run: Run, error: float) -> dict[str, Any]:
    """Return a result whose errors grow with n, and fall with the ratio."""
    forks = bool(run.model.fork_layers)
    ratios = {"own": 1.0} | ({f"{ratio:g}": 1 - 0.02 * ratio for ratio in study.evaluation.ratios} if forks else {})
    wrong = {ratio: np.clip(error * by * np.linspace(0.4, 1.8, 16), 0, 1) for ratio, by in ratios.items()}
    parts = {"": slice(0, 8), "-easy": slice(0, 2), "-hard": slice(4, 8), "-beyond": slice(8, 16)}
    groups = ("wide", "deep", *TASKS)
    cells = {task: [i / 10 for i in range(16)] for task in TASKS}
    inside = {"entropy": cells, "answer_entropy": cells}
    sizes = {"tokens": run.tokens, "parameters": 1_900_000, "flops_per_token": run.operations / run.tokens}
    return result(
        run, 1.0, **WHERE, **sizes,
        errors={ratio: {f"{group}{name}": float(of[part].mean()) for group in groups for name, part in parts.items()}
                for ratio, of in wrong.items()},
        accuracy={ratio: {task: (1 - of).tolist() for task in TASKS} for ratio, of in wrong.items()},
        questions={task: [300] * 16 for task in TASKS},
        inside=inside | ({"forks": cells, "answer_forks": cells} if forks else {}),
    )  # fmt: skip
