"""Measure a trained model of the study: losses by document, the rules, the dial, its forks and scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from experiments.runner.plan import Run
from thoughtbubbles.model import Fork, Selection, Thoughtbubbles
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.analysis.budget import budget_rows, score_rows
from thoughtbubbles.training.analysis.tokens import entropies, fork_counts
from thoughtbubbles.training.data.token_file import read_tokenizer, read_tokens
from thoughtbubbles.training.measures import (
    Window,
    negative_log_likelihood,
    packed_windows,
    prefix_windows,
    whole_windows,
)

BATCH = 64
"""Windows that are measured at once."""
SERVED: Rule = "causal"
"""The rule of every loss that is reported: no token's survivors depend on a later token."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How every model is measured."""

    report: str
    """Folder under the study's data whose held-out documents results are reported on."""
    tuning: str
    """Folder whose held-out documents choose learning rates, and nothing else."""
    other: str
    """Folder with held-out documents of another domain."""
    positions: int
    """Positions of the reported documents at which the four rules are compared."""
    ratios: list[float]
    """Ratios of the dial."""
    windows: int
    """Windows whose forks, scores and entropies are kept."""
    detailed: list[int]
    """Seeds of the runs that rules, dial, forks and scores are measured of."""


def measure_tuning(model: Thoughtbubbles, data: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return the loss that chooses a learning rate, JSON-ready."""
    return {"loss": tuning_loss(model, data, evaluation)}


def measure_final(model: Thoughtbubbles, data: Path, evaluation: Evaluation, run: Run) -> dict[str, Any]:
    """Return what is measured of a reported run, JSON-ready."""
    found = measure(model, data, evaluation)
    return found | details(model, data, evaluation) if run.seed in evaluation.detailed else found


def tuning_loss(model: Thoughtbubbles, data: Path, evaluation: Evaluation) -> float:
    """Return the loss on the tuning split, nats a token."""
    return mean_loss(model, read_tokens(data / evaluation.tuning, "val"))


def measure(model: Thoughtbubbles, data: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return the losses of `model` on held-out documents, JSON-ready.

    `loss` and `documents` are of the reported split under `causal`, `other` of the other domain; `blockwise` is the
    loss under the training rule, which is the same for a model without forks.
    """
    folder = data / evaluation.report
    reported = by_document(model, folder, SERVED)
    forks = bool(model.config.fork_layers)
    return {
        "loss": reported["loss"],
        "documents": reported["nats"],
        "document_tokens": reported["tokens"],
        "blockwise": by_document(model, folder, "blockwise")["loss"] if forks else reported["loss"],
        "other": by_document(model, data / evaluation.other, SERVED),
    }


def details(model: Thoughtbubbles, data: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return the loss of `model` under other rules and ratios, and what it forks, JSON-ready.

    `rules` is the loss under each rule at the same positions, `dial` that under `causal` at each ratio; a model without
    forks is the same under all, and has `causal` alone. `inside` is of the first windows.
    """
    ids = read_tokens(data / evaluation.report, "val")
    windows = packed_windows(ids, model.config.block_size)
    ratios = evaluation.ratios if model.config.fork_layers else ()
    return {
        "rules": _rules(model, windows, evaluation.positions),
        "dial": {f"{ratio:g}": mean_loss(model, ids, ratio) for ratio in ratios},
        "inside": _inside(model, windows[: evaluation.windows]),
    }


def by_document(model: Thoughtbubbles, folder: Path, rule: Rule) -> dict[str, Any]:
    """Return the loss on a folder's held-out documents, and each document's `nats` and `tokens`.

    Documents are packed in a row and cut into windows. Each is preceded by its end-of-text token, which is predicted
    too and counts as the document's own, but for the first.
    """
    ids = np.asarray(read_tokens(folder, "val"))
    nats = token_nats(model, ids, rule)
    document = np.cumsum(ids == read_tokenizer(folder).end_of_text)[1:] - 1
    sums = np.bincount(document, weights=nats)
    return {
        "loss": round(float(nats.mean()), 6),
        "nats": [round(float(each), 3) for each in sums],
        "tokens": np.bincount(document).tolist(),
    }


@torch.inference_mode()
def token_nats(
    model: Thoughtbubbles, ids: NDArray[np.integer[Any]], rule: Rule, ratio: float | None = None
) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each of ids (n,) but the first, in packed windows of L tokens: (n-1,)."""
    length, device = model.config.block_size, model.transformer.wte.weight.device
    whole = (len(ids) - 1) // length * length
    tokens = torch.from_numpy(np.asarray(ids).astype(np.int64))
    parts = [(tokens[:whole].view(-1, length), tokens[1 : whole + 1].view(-1, length))]
    if whole < len(ids) - 1:
        parts.append((tokens[whole:-1][None], tokens[whole + 1 :][None]))
    found = []
    for inputs, targets in parts:
        for start in range(0, len(inputs), BATCH):
            logits = model(inputs[start : start + BATCH].to(device), rule=rule, ratio=ratio)
            expected = targets[start : start + BATCH].to(device)
            found.append(F.cross_entropy(logits.flatten(0, 1).float(), expected.flatten(), reduction="none").cpu())
    return torch.cat(found).double().numpy()


def mean_loss(model: Thoughtbubbles, ids: NDArray[np.integer[Any]], ratio: float | None = None) -> float:
    """Return the loss on ids (n,) under `causal`, nats a token; `ratio` None: the model's own."""
    return round(float(token_nats(model, ids, SERVED, ratio).mean()), 6)


def _rules(model: Thoughtbubbles, windows: Sequence[Window], positions: int) -> dict[str, float]:
    """Return the loss under each rule at the same positions, each predicted from the tokens before it.

    `blockwise`, which is defined over a whole block, reads whole windows.
    """
    ends, whole = prefix_windows(windows, positions), whole_windows(windows, positions)
    rules: tuple[Rule, ...] = get_args(Rule) if model.config.fork_layers else (SERVED,)
    read = {rule: whole if rule == "blockwise" else ends for rule in rules}
    return {
        rule: round(negative_log_likelihood(model, chosen, rule, BATCH) / len(chosen), 6)
        for rule, chosen in read.items()
    }


@torch.inference_mode()
def _inside(model: Thoughtbubbles, windows: Sequence[Window]) -> dict[str, Any]:
    """Return, of the given windows under `causal`, each token's entropy and forks, and each layer's budget and scores.

    `entropy` is in hundredths of a nat, a list a window; `forks`, streams beside the original after the last fork
    layer, a digit a token.
    """
    device = model.transformer.wte.weight.device
    entropy: list[list[int]] = []
    records: list[list[Fork]] = []
    for window in windows:
        ids = torch.from_numpy(window.ids[:-1].astype(np.int64)).to(device)[None]
        logits, forks = model(ids, rule=SERVED, return_forks=True)
        entropy.append((entropies(logits[0]) * 100).round().int().tolist())
        records.append(forks)
    if not model.config.fork_layers:
        return {"entropy": entropy}
    lengths = [len(window.ids) - 1 for window in windows]
    budget = budget_rows(records, Selection.of(model.config, SERVED), lengths)
    return {
        "entropy": entropy,
        "forks": [
            "".join(map(str, _digits(forks[-1], length))) for forks, length in zip(records, lengths, strict=True)
        ],
        "budget": [row._asdict() for row in budget],
        "scores": [_finite(row._asdict()) for row in score_rows(records)],
    }


def _digits(fork: Fork, tokens: int) -> list[int]:
    counts: Tensor = fork_counts(fork, tokens)
    return counts.clamp(max=9).tolist()


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row rounded and without NaN: no streams have no mean."""
    values = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
    return {key: value for key, value in values.items() if not (isinstance(value, float) and math.isnan(value))}
