"""`evaluate`: score a checkpoint on held-out text and published sets, under each selection rule."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from thoughtbubbles.model import Checkpoint, Selection, load_checkpoint, set_threads, shipped_checkpoint
from thoughtbubbles.model.checkpoint.argument import add_checkpoint_argument
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.data.documents import read_documents
from thoughtbubbles.training.flags import add_device_flags
from thoughtbubbles.training.measures import (
    Score,
    Window,
    negative_log_likelihood,
    packed_windows,
    prefix_windows,
    rolling_windows,
    whole_windows,
)
from thoughtbubbles.training.strict_json import strict_json
from thoughtbubbles.training.tasks.evaluation import TASKS, Outcome, Settings, evaluate_task
from thoughtbubbles.training.tasks.gsm8k import Problem, read_problems

_HEADER = f"{'measure':<8} {'rule':<10} {'loss':>8} {'perplexity':>11} {'bits/byte':>10} {'tokens':>8} {'bytes':>8}"


class Row(NamedTuple):
    """The score of one measure under one rule: a line of the table."""

    measure: str
    rule: Rule
    score: Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint_argument(parser)
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="FILE",
                        help="held-out text: .jsonl or .jsonl.gz with a `text` field, or text files")  # fmt: skip
    parser.add_argument("--task", nargs="+", action="append", default=[], metavar=("NAME", "FILE"),
                        help=f"a set ({', '.join(TASKS)}) and its published files; may be repeated")  # fmt: skip
    parser.add_argument("--rules", nargs="+", choices=get_args(Rule), default=get_args(Rule), metavar="RULE",
                        help=f"rules that select streams, of {', '.join(get_args(Rule))} (all)")  # fmt: skip
    parser.add_argument("--ratio", type=float, help="streams per token in the budget (the model's)")
    parser.add_argument("--positions", type=int, default=0, help="positions of the prefix measure (none)")
    parser.add_argument("--limit", type=int, help="questions of each file of a task (all)")
    parser.add_argument("--shots", nargs=2, metavar=("COUNT", "FILE"),
                        help="solved problems in each prompt of gsm8k: the first COUNT of FILE")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, help="windows per forward pass (%(default)s)")
    add_device_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print the scores, a line for each measure or set and each rule, and return 0."""
    if not args.data and not args.task:
        raise ValueError("data: nothing to evaluate on; give --data FILE or --task NAME FILE")
    if args.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {args.batch_size}")
    if args.positions < 0:
        raise ValueError(f"positions must be at least 0, not {args.positions}")
    set_threads(args.threads)
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint(), device=args.device)
    Selection.of(checkpoint.model.config, args.rules[0], args.ratio)  # raises before the first line is printed
    if args.data:
        _run_texts(args, checkpoint)
    for name, *files in args.task:
        _run_task(args, checkpoint, name, list(map(Path, files)))
    return 0


def _run_texts(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    texts = list(read_documents(args.data))
    if not any(texts):
        raise ValueError(f"data: no text in {', '.join(map(str, args.data))}")
    if not args.json:
        print(_HEADER)
    for row in evaluate(checkpoint, texts, args.rules, args.positions, args.batch_size, ratio=args.ratio):
        print((_json_line if args.json else _table_line)(row), flush=True)


def _run_task(args: argparse.Namespace, checkpoint: Checkpoint, name: str, files: list[Path]) -> None:
    settings = Settings(
        rule=args.rules[0], ratio=args.ratio, batch_size=args.batch_size, limit=args.limit, shots=_shots(args.shots)
    )
    for rule in args.rules:
        for outcome in evaluate_task(checkpoint, name, files, replace(settings, rule=rule)):
            print((_json_outcome if args.json else _outcome_line)(name, rule, outcome), flush=True)


def _shots(flag: Sequence[str] | None) -> tuple[Problem, ...]:
    if not flag:
        return ()
    count, file = flag
    if not count.isdecimal():
        raise ValueError(f"shots: {count!r} is not a number of problems")
    return tuple(islice(read_problems(Path(file)), int(count)))


def evaluate(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    rules: Sequence[Rule],
    positions: int,
    batch_size: int,
    *,
    ratio: float | None = None,
) -> Iterator[Row]:
    """Yield the score of `texts` for every measure of `training.measures` and every rule.

    The prefix measure scores `positions` positions (0: none), for `blockwise` within whole windows. It has no bits per
    byte, because it is a sample.
    """
    size = sum(len(text.encode()) for text in texts)
    cut = _windows(checkpoint, texts, positions)
    whole = whole_windows(cut["packed"], positions)
    for measure, windows in cut.items():
        tokens = sum(window.predicted for window in windows)
        for rule in rules if windows else ():
            read = whole if (measure, rule) == ("prefix", "blockwise") else windows
            nats = negative_log_likelihood(checkpoint.model, read, rule, batch_size, ratio)
            yield Row(measure, rule, Score(nats, tokens, 0 if measure == "prefix" else size))


def _windows(checkpoint: Checkpoint, texts: Sequence[str], positions: int) -> dict[str, list[Window]]:
    length, end_of_text = checkpoint.model.config.block_size, checkpoint.tokenizer.end_of_text
    documents = checkpoint.tokenizer.encode_batch(texts)
    joined = np.array([i for document in documents for i in (end_of_text, *document)], dtype=np.int64)
    packed = packed_windows(joined, length)
    return {
        "packed": packed,
        "rolling": rolling_windows(documents, end_of_text, length),
        "prefix": prefix_windows(packed, positions),
    }


def _table_line(row: Row) -> str:
    score = row.score
    per_byte = f"{score.bits_per_byte:10.4f}" if score.bytes else f"{'-':>10}"
    return (f"{row.measure:<8} {row.rule:<10} {score.loss:8.4f} {score.perplexity:11.3f} {per_byte} "
            f"{score.tokens:8} {score.bytes:8}")  # fmt: skip


def _json_line(row: Row) -> str:
    score = row.score
    values = {"loss": score.loss, "perplexity": score.perplexity, "tokens": score.tokens}
    per_byte = {"bits_per_byte": score.bits_per_byte, "bytes": score.bytes} if score.bytes else {}
    return strict_json({"measure": row.measure, "rule": row.rule, **values, **per_byte})


def _outcome_line(name: str, rule: Rule, outcome: Outcome) -> str:
    metrics = " ".join(f"{metric} {value:.4f}" for metric, value in outcome.metrics.items())
    return f"{name:<12} {rule:<10} {outcome.questions:>6} {metrics} {outcome.subset}".rstrip()


def _json_outcome(name: str, rule: Rule, outcome: Outcome) -> str:
    labels = {"task": name, "subset": outcome.subset, "rule": rule, "questions": outcome.questions}
    return strict_json({**labels, **outcome.metrics})
