"""`prepare`: encode documents into token files with an index."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from thoughtbubbles.training.data.corpus_writer import CorpusWriter, only_preparation
from thoughtbubbles.training.data.documents import Documents, FileDocuments
from thoughtbubbles.training.data.published import PUBLISHED, published_documents
from thoughtbubbles.training.data.token_file import Index

VAL_SHARE = 0.0005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "your own text: .jsonl or .ndjson, also .gz, or .parquet with a `text` field, or files of one document each"
    parser.add_argument("set", nargs="?", choices=PUBLISHED, metavar="SET",
                        help=f"a published data set: {', '.join(PUBLISHED)}; needs the extra `datasets`")  # fmt: skip
    parser.add_argument("--from", dest="folder", type=Path, metavar="FOLDER",
                        help="a copy of the published set's repository, instead of the Hugging Face hub")  # fmt: skip
    parser.add_argument("--train", nargs="+", type=Path, metavar="FILE", help=text)
    parser.add_argument("--val", nargs="+", type=Path, metavar="FILE", help="the same, held out")
    parser.add_argument("--val-share", type=float, default=VAL_SHARE,
                        help="share of documents to hold out without --val (%(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True,
                        help="folder for the token files and their index; an interrupted run continues")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that encode (%(default)s)")
    vocabulary = parser.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument(
        "--vocab-size", type=int, help="train a byte-level BPE of this many ids on the training text"
    )
    vocabulary.add_argument("--tokenizer", help="a .tiktoken file, or a name that tiktoken knows")


def run(args: argparse.Namespace) -> int:
    """Prepare the folder, print the sizes of its files, and return 0."""
    tokenizer = args.tokenizer or args.vocab_size
    inputs = _inputs(args)
    with only_preparation(args.out):
        writer = CorpusWriter(inputs, args.out, tokenizer, val_share=args.val_share, workers=args.workers)
        index = writer.write()
    for name, split in (("train", index.train), ("val", index.val)):
        print(f"{args.out / name}.bin: {split.tokens:,} tokens, {split.bytes:,} bytes, {split.documents:,} documents")
    return 0


def prepare(train: Sequence[Path], val: Sequence[Path], out: Path, tokenizer: str | int) -> Index:
    """Prepare local files in this process, and return the index."""
    inputs: dict[str, Documents] = {"train": FileDocuments(train), "val": FileDocuments(val)}
    return CorpusWriter(inputs, out, tokenizer, val_share=VAL_SHARE, workers=1).write()


def _inputs(args: argparse.Namespace) -> Mapping[str, Documents]:
    if (args.set is None) == (args.train is None):
        raise ValueError("prepare: give either the name of a published set or your own files with --train")
    if args.set is not None and args.val is not None:
        raise ValueError(
            "prepare: --val needs --train; a published set has its own validation split, or see --val-share"
        )
    if args.set is None and args.folder is not None:
        raise ValueError("prepare: --from needs the name of a published set")
    if args.set is not None:
        return published_documents(args.set, args.folder)
    files = {"train": args.train, "val": args.val}
    return {part: FileDocuments(paths) for part, paths in files.items() if paths is not None}
