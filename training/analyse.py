"""`analyse`: look inside a checkpoint; write figures and data of its forks, entropy, attention, scores and budget."""

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.model import Checkpoint, Selection, load_checkpoint, set_threads, shipped_checkpoint
from thoughtbubbles.model.checkpoint.argument import add_checkpoint_argument
from thoughtbubbles.model.extras import install_command
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.analysis.files import write_data, write_rows
from thoughtbubbles.training.analysis.lens import change_rows, check_biases, lens_rows, parse_bias
from thoughtbubbles.training.analysis.study import fork_map, study
from thoughtbubbles.training.analysis.tokens import bins
from thoughtbubbles.training.data.documents import read_documents
from thoughtbubbles.training.flags import add_device_flags
from thoughtbubbles.training.measures import packed_windows

MAP_TOKENS = 48
"""Tokens of the fork map without `--text`: the first ones of the data."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint_argument(parser)
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FILE",
                        help="text to read: .jsonl or .jsonl.gz with a `text` field, or text files")  # fmt: skip
    parser.add_argument("--regular", type=Path, help="a regular model of the same vocabulary, for its entropy")
    parser.add_argument("--text", help="text of the fork map (the start of the data)")
    parser.add_argument("--fork", action="append", default=[], metavar="LAYER:POSITION:CHANGE",
                        help="change forks of a token of --text: never, always, or a bias of the logit")  # fmt: skip
    parser.add_argument("--rule", choices=get_args(Rule), default="causal",
                        help="rule that selects streams (%(default)s)")  # fmt: skip
    parser.add_argument("--ratio", type=float, help="streams per token in the budget (the model's)")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of the data to read (%(default)s)")
    parser.add_argument("--length", type=int, help="tokens of a window (the model's block)")
    parser.add_argument("--bins", type=int, default=12, help="bins of entropy (%(default)s)")
    add_device_flags(parser)
    parser.add_argument("--out", type=Path, default=Path("analysis"), help="folder for figures and data (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write figures and data to `--out`, print the files, and return 0."""
    for name in ("tokens", "length", "bins"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    set_threads(args.threads)
    biases = [parse_bias(each) for each in args.fork]
    figures = _figures()
    checkpoint, regular = _load(args)
    config = checkpoint.model.config
    selection = Selection.of(config, args.rule, args.ratio)
    ids = _read(checkpoint, regular, args)
    text = checkpoint.tokenizer.encode(args.text) if args.text else ids[1 : MAP_TOKENS + 1].tolist()
    check_biases(biases, config, len(text))
    found = study(checkpoint, packed_windows(ids, args.length or config.block_size), selection, regular)
    binned = bins(found.tokens, args.bins)
    mapped = fork_map(checkpoint, text, selection)
    changes = change_rows(checkpoint, text, selection, biases) if biases else []

    args.out.mkdir(parents=True, exist_ok=True)
    write_data(args.out, found, binned, mapped, _about(args, checkpoint, selection))
    write_rows(args.out / "lens.csv", lens_rows(checkpoint, text, selection))
    if changes:
        write_rows(args.out / "changes.csv", changes)
    figures.draw_entropy(binned, args.out / "entropy.png")
    figures.draw_attention(found.attention, args.out / "attention.png")
    figures.draw_map(mapped, config.n_layer, args.out / "map.png")
    figures.draw_layers(found.budget, found.scores, args.out / "layers.png")
    print(*sorted(args.out.iterdir()), sep="\n")
    return 0


def _figures() -> ModuleType:
    """Return the module that draws. Called before anything is computed, because it may be missing."""
    try:
        from thoughtbubbles.training.analysis import figures  # noqa: PLC0415  (matplotlib is in an extra)
    except ModuleNotFoundError as missing:
        raise ValueError(f"figures need {missing.name}: {install_command('plots')}") from missing
    return figures


def _load(args: argparse.Namespace) -> tuple[Checkpoint, Checkpoint | None]:
    folder = args.checkpoint or shipped_checkpoint()
    checkpoint = load_checkpoint(folder, device=args.device)
    if not checkpoint.model.config.fork_layers:
        raise ValueError(f"{folder}: a model without fork layers has no forks to analyse; it may be --regular")
    return checkpoint, load_checkpoint(args.regular, device=args.device) if args.regular else None


def _read(checkpoint: Checkpoint, regular: Checkpoint | None, args: argparse.Namespace) -> NDArray[np.int64]:
    """Return the first `--tokens` ids, with end-of-text before each document, and one more, which is only predicted."""
    texts = list(read_documents(args.data))
    ids: list[int] = []
    for text in texts:
        document = checkpoint.tokenizer.encode(text)
        if regular and regular.tokenizer.encode(text) != document:
            raise ValueError(f"regular: {args.regular} has another vocabulary")
        ids += [checkpoint.tokenizer.end_of_text, *document]
        if len(ids) > args.tokens:
            break
    if len(ids) < 2:
        raise ValueError(f"data: no tokens to read in {', '.join(map(str, args.data))}")
    return np.array(ids[: args.tokens + 1], dtype=np.int64)


def _about(args: argparse.Namespace, checkpoint: Checkpoint, selection: Selection) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint.name,
        "revision": checkpoint.revision,
        "step": checkpoint.provenance.get("step"),
        "regular": args.regular.name if args.regular else None,
        "data": [path.name for path in args.data],
        "rule": selection.rule,
        "ratio": selection.max_block_size / selection.block_size,
        "window": args.length or checkpoint.model.config.block_size,
    }
