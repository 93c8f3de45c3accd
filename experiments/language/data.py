"""Prepare the study's data: token folders, and one archive of them to copy to another machine.

    python -m experiments.language.data --english FOLDER --code FOLDER --tokenizer FILE [--out data/language]

FOLDER holds `train.jsonl.gz` and `val.jsonl.gz`; that of the code also `ood.jsonl.gz`. Documents are never divided:

- `english/train` learns from every English training document but one in a hundred,
- `tuning/val` holds these: they choose learning rates and nothing else,
- `english/val` is the corpus's own held-out text, which results are reported on,
- `code/val` is text of another domain: Python files of packages that no training file is from.

OUT.tar.xz beside OUT has the files that a run reads; unpack it with `tar -xJf` in the parent of OUT.
"""

import argparse
import gzip
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from thoughtbubbles.training.data.prepare import prepare

ONE_IN = 100
"""Of so many training documents one is held out to tune learning rates."""
OTHER_DOCUMENTS = 48
"""Documents of the other domain: enough for an interval, few enough to score every model on."""
CARRIED = {"english": ("train", "val"), "tuning": ("val",), "code": ("val",)}


def main() -> None:
    """Write the folders and the archive, and print their sizes."""
    args = _arguments()
    out: Path = args.out
    texts = out / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    learned, tuned = split(read_lines(args.english / "train.jsonl.gz"))
    held_out = list(read_lines(args.english / "val.jsonl.gz"))
    other = list(islice(read_lines(args.code / "ood.jsonl.gz"), OTHER_DOCUMENTS))
    files = {name: write_lines(texts / f"{name}.jsonl", lines) for name, lines in
             (("train", learned), ("tuning", tuned), ("val", held_out), ("other", other))}  # fmt: skip
    for name, (train, val) in {
        "english": ("train", "val"),
        "tuning": ("val", "tuning"),
        "code": ("val", "other"),
    }.items():
        index = prepare([files[train]], [files[val]], out / name, str(args.tokenizer))
        print(f"{out / name}: {index.train.tokens:,} and {index.val.tokens:,} tokens", flush=True)
    shutil.rmtree(texts)
    print(f"{pack(out, CARRIED)}", flush=True)


def pack(folder: Path, carried: Mapping[str, Sequence[str]], others: Iterable[str] = ()) -> Path:
    """Write `folder`.tar.xz with what runs read: the splits `carried` of each folder, and `others`; return its path."""
    archive = folder.with_suffix(".tar.xz")
    with tarfile.open(archive, "w:xz", preset=9) as file:  # 9 finds text again that is 32 MB back, in another folder
        for name, splits in carried.items():
            for kept in ("index.json", "tokenizer.tiktoken", *(f"{split}.bin" for split in splits)):
                file.add(folder / name / kept, f"{folder.name}/{name}/{kept}")
        for name in others:
            file.add(folder / name, f"{folder.name}/{name}")
    return archive


def split(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the lines to learn from, and one in `ONE_IN` to tune on."""
    every = list(lines)
    return [line for i, line in enumerate(every) if i % ONE_IN], every[::ONE_IN]


def read_lines(path: Path) -> Iterable[str]:
    """Yield the lines of a gzipped file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (line for line in file if line.strip())


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write lines that have their ends to a file, and return its path."""
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--english", type=Path, required=True)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="the vocabulary: a .tiktoken file")
    parser.add_argument("--out", type=Path, default=Path("data/language"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
