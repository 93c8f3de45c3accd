"""Measure a checkpoint as its card does: in float32, bits per byte, text of other domains, agreement, the dial."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoint.data import AGREEMENT_FILE
from experiments.language.measure import SERVED, by_document, token_nats
from experiments.runner.plan import Run
from thoughtbubbles.model import Checkpoint, Thoughtbubbles
from thoughtbubbles.training.data.token_file import Index, read_tokenizer, read_tokens
from thoughtbubbles.training.tasks.evaluation import Settings, evaluate_task

BATCH = 64
"""Continuations that are scored at once."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How every model is measured."""

    report: str
    """Folder under the study's data whose held-out documents results are reported on."""
    tuning: str
    """Folder whose held-out documents choose recipe and rates, and nothing else."""
    other: str
    """Folder with held-out English of another domain."""
    code: str
    """Folder with held-out Python."""
    ratios: list[float]
    """Ratios of the dial."""


def measure_tuning(model: Thoughtbubbles, data: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return the loss that chooses recipe and rate, JSON-ready."""
    return {"loss": _loss(model, data / evaluation.tuning)}


def measure_final(model: Thoughtbubbles, data: Path, evaluation: Evaluation, _run: Run) -> dict[str, Any]:
    """Return what is measured of a reported run, JSON-ready."""
    return measure(model, data, evaluation)


def measure(model: Thoughtbubbles, data: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return what decides which checkpoint is shipped, and the dial, JSON-ready; all in float32, rule `causal`.

    `loss` and `documents` are of the reported split; `other` and `code` of the other domains; `agreement` is the share
    of right answers, by `all` and by task; `dial` the reported loss at each ratio, of a model with forks.
    """
    kind = model.transformer.wte.weight.device.type
    with torch.autocast(kind, enabled=False):
        reported = scored(model, data / evaluation.report)
        ratios = evaluation.ratios if model.config.fork_layers else ()
        return {
            "loss": reported["loss"],
            "bits_per_byte": reported["bits_per_byte"],
            "documents": reported["nats"],
            "document_tokens": reported["tokens"],
            "tuning": _loss(model, data / evaluation.tuning),
            "other": scored(model, data / evaluation.other),
            "code": scored(model, data / evaluation.code),
            "agreement": _agreement(model, data),
            "dial": {f"{ratio:g}": _loss(model, data / evaluation.report, ratio) for ratio in ratios},
        }


def scored(model: Thoughtbubbles, folder: Path) -> dict[str, Any]:
    """Return `by_document` of a folder's held-out text, and its bits per byte."""
    found = by_document(model, folder, SERVED)
    nats = found["loss"] * sum(found["tokens"])
    return {"bits_per_byte": round(nats / math.log(2) / Index.read(folder).val.bytes, 6), **found}


def _loss(model: Thoughtbubbles, folder: Path, ratio: float | None = None) -> float:
    """Return the loss on a folder's held-out text, nats a token."""
    return round(float(token_nats(model, read_tokens(folder, "val"), SERVED, ratio).mean()), 6)


def _agreement(model: Thoughtbubbles, data: Path) -> dict[str, float]:
    """Return the share of right answers by task, and of all."""
    tokenizer = read_tokenizer(data / "english")
    checkpoint = Checkpoint(model=model, tokenizer=tokenizer, provenance={})
    settings = Settings(rule=SERVED, batch_size=BATCH)
    found = evaluate_task(checkpoint, "agreement", [data / AGREEMENT_FILE], settings)
    return {each.subset or "all": round(each.metrics["acc"], 6) for each in found}
