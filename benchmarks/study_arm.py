"""One arm of `benchmarks.study` under one seed: train it, measure it, write what was found to OUT/result.json.

    python -m benchmarks.study_arm STUDY ARM SEED --data FOLDER --out FOLDER [--device cuda]

A run that was stopped before its end goes on when it is asked for again, and has no result until then.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.header import machine
from benchmarks.study_plan import Evaluation, Run, Study, read_study
from benchmarks.study_results import RESULT_FILE
from model import Thoughtbubbles, load_checkpoint
from model.selection import Rule
from training.data.token_file import Index, read_tokens
from training.distributed import Ranks
from training.flops import flops_per_block
from training.measures import Score, Window, negative_log_likelihood, packed_windows, prefix_windows, whole_windows
from training.state import has_state
from training.step import autocast
from training.stopping import stop_on_signal
from training.trainer import STATE_FOLDER, Trainer

BATCH = 128
"""Windows that are measured at once."""


def main() -> None:
    """Train and measure as asked."""
    args = _arguments()
    study = read_study(args.study)
    run, begin = study.find(args.arm, args.seed), time.perf_counter()
    with stop_on_signal() as stopping:  # to the end: what is trained is measured, though asked to stop
        if _train(run, args.data, args.out, torch.device(args.device), stopping):
            _measure(study, run, args, begin)


def _measure(study: Study, run: Run, args: argparse.Namespace, begin: float) -> None:
    """Write down what is found of the trained model; `begin` is when its training did."""
    trained = time.perf_counter() - begin
    model = load_checkpoint(args.out / "checkpoint", device=args.device).model
    with autocast(torch.device(args.device), run.training.precision):
        found = measure(model, args.data, study.evaluation, dial=run.arm in study.report.dial)
    seconds = {"training_seconds": round(trained, 1), "seconds": round(time.perf_counter() - begin, 1)}
    told = {**_about(study, run, model), **found, "tokens_per_second": _speed(args.out / "log.jsonl"), **seconds}
    (args.out / RESULT_FILE).write_text(json.dumps(told) + "\n", encoding="utf-8")


def _train(run: Run, data: Path, out: Path, device: torch.device, stopping: Callable[[], bool]) -> bool:
    """Whether the last step is done: a signal asks for an earlier end."""
    resume = has_state(out / STATE_FOLDER)
    trainer = Trainer(run.model, run.training, data=data, out=out, ranks=Ranks(device=device), resume=resume)
    trainer.run(stopping)
    return trainer.step == run.training.steps


def measure(model: Thoughtbubbles, data: Path, evaluation: Evaluation, *, dial: bool) -> dict[str, Any]:
    """Of the held-out text in `data`: loss, perplexity and bits a byte under the training rule, in packed windows.

    `rules` is the loss under each rule at the same positions, `dial`, where asked for, that of packed windows under
    `causal` at each ratio; a model without forks is the same under all, and has `causal` alone.
    """
    windows = packed_windows(read_tokens(data, "val"), model.config.block_size)
    score = _score(model, windows, "blockwise", size=Index.read(data).val.bytes)
    ends, whole = (cut(windows, evaluation.positions) for cut in (prefix_windows, whole_windows))
    rules: tuple[Rule, ...] = get_args(Rule) if model.config.fork_layers else ("causal",)
    ratios = evaluation.ratios if dial and model.config.fork_layers else []
    return {
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "rules": {rule: _score(model, whole if rule == "blockwise" else ends, rule).loss for rule in rules},
        "dial": {f"{ratio:g}": _score(model, windows, "causal", ratio).loss for ratio in ratios},
    }


def _score(
    model: Thoughtbubbles, windows: list[Window], rule: Rule, ratio: float | None = None, *, size: int = 0
) -> Score:
    nats = negative_log_likelihood(model, windows, rule, BATCH, ratio)
    return Score(nats, sum(window.predicted for window in windows), size)


def _about(study: Study, run: Run, model: Thoughtbubbles) -> dict[str, Any]:
    """Who was measured; operations are those of learning from a token at the full ratio."""
    return {
        "arm": run.arm,
        "seed": run.seed,
        "machine": machine(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": run.tokens,
        "flops_per_token": flops_per_block(run.model) / run.model.block_size,
        "settings": study.settings(run),
    }


def _speed(log: Path) -> int | None:
    """The median of what the log tells, tokens a second: beside other runs on the same device a share of it."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    told = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return round(statistics.median(told)) if told else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("arm")
    parser.add_argument("seed", type=int)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
