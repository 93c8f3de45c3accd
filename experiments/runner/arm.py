"""Train and measure one run of a study, and write its line to OUT/result.json.

    python -m experiments.NAME.arm STUDY SIZE ARM tuning|final SEED RATE --data FOLDER --out FOLDER [--device cuda]

A run that was stopped resumes when the command is given again, and has no result until its end.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from benchmarks.header import machine
from experiments.runner.plan import Kind, Run, Study, read_study
from experiments.runner.results import RESULT_FILE
from thoughtbubbles.model import Thoughtbubbles, load_checkpoint
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.state import delete_states, has_state
from thoughtbubbles.training.step import autocast
from thoughtbubbles.training.stopping import stop_on_signal
from thoughtbubbles.training.trainer import LOG_FILE, STATE_FOLDER, LossNotFiniteError, Trainer

SECONDS_FILE = "training-seconds"
"""In a run's folder until its end: what its sessions so far took to train."""


class Measures(NamedTuple):
    """How a study measures its models."""

    evaluation: type[Any]
    """Dataclass of the study's table `evaluation`, which is given to both functions."""
    tuning: Callable[[Thoughtbubbles, Path, Any], dict[str, Any]]
    """Returns at least the `loss` that chooses a learning rate, of a model and the study's data."""
    final: Callable[[Thoughtbubbles, Path, Any, Run], dict[str, Any]]
    """Returns at least the `loss` that is reported."""
    keep: bool = False
    """Whether the checkpoint of a reported run stays in its folder."""


def train_and_measure(measures: Measures) -> None:
    """Train and measure the run that the arguments name."""
    args = _arguments()
    study = read_study(args.study, measures.evaluation)
    run = study.run(args.size, args.arm, args.kind, args.seed, args.rate)
    with stop_on_signal() as stopping:  # to the end: what is trained is measured, though a signal came
        result = _result(run, args, stopping, lambda model: _found(measures, study, run, model, args.data))
        if result is None:
            return
        _write(args.out, result)
        delete_states(args.out / STATE_FOLDER)  # only now: until then the same command resumes or measures again
        for folder in ("best",) if measures.keep and run.kind == "final" else ("best", "checkpoint"):
            shutil.rmtree(args.out / folder, ignore_errors=True)
        (args.out / SECONDS_FILE).unlink(missing_ok=True)


def _result(
    run: Run,
    args: argparse.Namespace,
    stopping: Callable[[], bool],
    measure: Callable[[Thoughtbubbles], dict[str, Any]],
) -> dict[str, Any] | None:
    """Train and measure, and return the whole result; None if training was stopped before its last step."""
    spent = args.out / SECONDS_FILE
    before = spent.read_text(encoding="utf-8") if spent.exists() else ""
    begin = time.perf_counter() - float(before or 0)  # empty where a kill cut it off
    try:
        whole = _train(run, args.data / run.data, args.out, torch.device(args.device), stopping)
    except LossNotFiniteError:
        return {**_about(run), "loss": None, "seconds": round(time.perf_counter() - begin, 1)}
    trained = time.perf_counter() - begin
    spent.write_text(repr(trained), encoding="utf-8")
    if not whole:
        return None
    model = load_checkpoint(args.out / "checkpoint", device=args.device).model
    torch.manual_seed(run.seed)  # of survivors that are drawn at random
    with autocast(torch.device(args.device), run.training.precision):
        found = measure(model)
    seconds = {"training_seconds": round(trained, 1), "seconds": round(time.perf_counter() - begin, 1)}
    return {**_about(run), **_size(run, model), **found, **_logged(args.out / LOG_FILE), **seconds}


def _train(run: Run, data: Path, out: Path, device: torch.device, stopping: Callable[[], bool]) -> bool:
    """Train, and return whether the last step is done: a signal ends training earlier."""
    resume = has_state(out / STATE_FOLDER)
    trainer = Trainer(run.model, run.training, data=data, out=out, ranks=Ranks(device=device), resume=resume)
    trainer.run(stopping)
    return trainer.step == run.training.steps


def _found(measures: Measures, study: Study, run: Run, model: Thoughtbubbles, data: Path) -> dict[str, Any]:
    if run.kind == "tuning":
        return measures.tuning(model, data, study.evaluation)
    return measures.final(model, data, study.evaluation, run)


def _about(run: Run) -> dict[str, Any]:
    """Return what names the run, and where it was made."""
    where = {"machine": machine(), "torch": torch.__version__, "date": datetime.now(UTC).date().isoformat()}
    named = {"size": run.size, "arm": run.arm, "kind": run.kind, "seed": run.seed, "settings": run.settings}
    return {**named, **where, "tokens": run.tokens}


def _size(run: Run, model: Thoughtbubbles) -> dict[str, Any]:
    """Return parameters, and operations of learning from a token."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_token": run.operations / run.tokens,
    }


def _logged(log: Path) -> dict[str, Any]:
    """Return the validation losses by step, under the training rule, and the median of the tokens a second.

    Beside other runs on the same device that is a share of its speed.
    """
    lines = list(map(json.loads, log.read_text(encoding="utf-8").splitlines()))
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    curve = {str(line["step"]): line["val_loss"] for line in lines if "val_loss" in line}
    return {"curve": curve, "tokens_per_second": round(statistics.median(speeds)) if speeds else None}


def _write(out: Path, result: dict[str, Any]) -> None:
    partial = out / f"{RESULT_FILE}.partial"
    partial.write_text(json.dumps(result, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(out / RESULT_FILE)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("size")
    parser.add_argument("arm")
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("seed", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()
