"""Measure a checkpoint as its card does: in float32, bits per byte, text of other domains, agreement, the dial."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoint.data import AGREEMENT_FILE
from experiments.language.measure import SERVED, by_document, mean_loss
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
    return {"loss": mean_loss(model, read_tokens(data / evaluation.tuning, "val"))}


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
        ids = read_tokens(data / evaluation.report, "val")
        ratios = evaluation.ratios if model.config.fork_layers else ()
        return {
            "loss": reported["loss"],
            "bits_per_byte": reported["bits_per_byte"],
            "documents": reported["nats"],
            "document_tokens": reported["tokens"],
            "tuning": mean_loss(model, read_tokens(data / evaluation.tuning, "val")),
            "other": scored(model, data / evaluation.other),
            "code": scored(model, data / evaluation.code),
            "agreement": _agreement(model, data),
            "dial": {f"{ratio:g}": mean_loss(model, ids, ratio) for ratio in ratios},
        }


def scored(model: Thoughtbubbles, folder: Path) -> dict[str, Any]:
    """Return `by_document` of a folder's held-out text, and its bits per byte."""
    found = by_document(model, folder, SERVED)
    nats = found["loss"] * sum(found["tokens"])
    return {"bits_per_byte": round(nats / math.log(2) / Index.read(folder).val.bytes, 6), **found}


def _agreement(model: Thoughtbubbles, data: Path) -> dict[str, float]:
    """Return the share of right answers by task, and of all."""
    tokenizer = read_tokenizer(data / "english")
    checkpoint = Checkpoint(model=model, tokenizer=tokenizer, provenance={})
    settings = Settings(rule=SERVED, batch_size=BATCH)
    found = evaluate_task(checkpoint, "agreement", [data / AGREEMENT_FILE], settings)
    return {each.subset or "all": round(each.metrics["acc"], 6) for each in found}
