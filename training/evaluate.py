"""`evaluate`: held-out loss, perplexity and bits per byte of a checkpoint, under each selection rule."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch

from model import Checkpoint, load_checkpoint
from model.selection import Rule
from training.data.documents import read_documents
from training.measures import Score, Window, negative_log_likelihood, packed_windows, prefix_windows, rolling_windows

_HEADER = f"{'measure':<8} {'rule':<10} {'loss':>8} {'perplexity':>11} {'bits/byte':>10} {'tokens':>8} {'bytes':>8}"


class Row(NamedTuple):
    """One line of the table."""

    measure: str
    rule: Rule
    score: Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `evaluate`."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FILE",
                        help="held-out text: .jsonl or .jsonl.gz with a `text` field, or text files")  # fmt: skip
    parser.add_argument("--rules", nargs="+", choices=get_args(Rule), default=get_args(Rule))
    parser.add_argument("--positions", type=int, default=0, help="positions of the prefix measure (default: none)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows that go through the model at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="JSON lines in place of the table")


def run(args: argparse.Namespace) -> int:
    """Print the scores, a line for each measure and rule; 0."""
    checkpoint = load_checkpoint(args.checkpoint, device=args.device)
    texts = list(read_documents(args.data))
    if not texts:
        raise ValueError(f"data: no documents in {', '.join(map(str, args.data))}")
    show = _json_line if args.json else _table_line
    if not args.json:
        print(_HEADER)
    for row in evaluate(checkpoint, texts, args.rules, args.positions, args.batch_size):
        print(show(row), flush=True)
    return 0


def evaluate(
    checkpoint: Checkpoint, texts: Sequence[str], rules: Sequence[Rule], positions: int, batch_size: int
) -> Iterator[Row]:
    """Score `texts` by every measure of `training.measures` under every rule.

    The prefix measure is taken at `positions` positions (0: left out), and for no `blockwise`, which has no meaning
    without the whole block; dividing by bytes has none for a sample.
    """
    size = sum(len(text.encode()) for text in texts)
    for measure, windows in _windows(checkpoint, texts, positions).items():
        tokens = sum(window.predicted for window in windows)
        for rule in rules:
            if windows and (measure, rule) != ("prefix", "blockwise"):
                nats = negative_log_likelihood(checkpoint.model, windows, rule, batch_size)
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
    return json.dumps({"measure": row.measure, "rule": row.rule, **values, **per_byte})
