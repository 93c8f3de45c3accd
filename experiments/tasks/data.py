"""Make the data of `experiments.tasks.study`: a prepared folder of `training.synthetic` segments, a character a token.

    python -m experiments.tasks.data [--out data/tasks] [--tokens 24000000]

The same everywhere: it is made where it is used, and nothing travels. Held-out text for the curve comes from another
seed; what rates are chosen on and what is reported is drawn by `measure.py`, from seeds of their own.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.training.data.prepare import prepare
from thoughtbubbles.training.synthetic import segments

TRAINED = range(1, 9)
"""Difficulties that models learn from."""
TRAIN_SEED, VAL_SEED = 1, 2
VAL_TOKENS = 50_000
DOCUMENT = 4000
"""Characters of a document, at least."""
FOLDER = "stream"


def main() -> None:
    """Write the folder and print its size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/tasks"))
    parser.add_argument("--tokens", type=int, default=24_000_000, help="to learn from, at least (%(default)s)")
    args = parser.parse_args()
    make(args.out / FOLDER, args.tokens)


def make(folder: Path, tokens: int, val_tokens: int = VAL_TOKENS) -> None:
    """Make the prepared `folder` with at least so many tokens to learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks, train, val = folder / "bytes.tiktoken", folder / "train.jsonl", folder / "val.jsonl"
    byte_tokenizer().save(ranks)
    _write(train, TRAIN_SEED, tokens)
    _write(val, VAL_SEED, val_tokens)
    index = prepare([train], [val], folder, str(ranks))
    for path in (ranks, train, val):
        path.unlink()
    print(f"{folder}: {index.train.tokens:,} and {index.val.tokens:,} tokens", flush=True)


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer whose ids are bytes; 256 is end of text."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")


def _write(path: Path, seed: int, tokens: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in _documents(seed, tokens):
            file.write(json.dumps({"text": text}) + "\n")


def _documents(seed: int, tokens: int) -> Iterator[str]:
    written, parts, length = 0, list[str](), 0
    for each in segments(seed, TRAINED):
        parts.append(each.text)
        length += len(each.text)
        if length >= DOCUMENT:
            yield "".join(parts)
            written, parts, length = written + length + 1, [], 0
            if written >= tokens:
                return


if __name__ == "__main__":
    main()
