"""Prepare the study's data: token folders, the set of agreement, and one archive of them to copy to another machine.

    python -m experiments.checkpoint.data --english FOLDER --code FOLDER --wordnet FOLDER --agreement FILE
                                          --tokenizer FILE [--out data/checkpoint]

FOLDER of English and of code is as for `experiments.language.data`, that of WordNet has `data.noun` and so on (Debian's
package wordnet-base: /usr/share/wordnet). Documents are never divided:

- `english/train` learns from every English training document but one in a hundred,
- `mixed/train` from these and from the prose in the docstrings of the code,
- `tuning/val` holds the one in a hundred: it chooses recipe and rates,
- `english/val` is the corpus's own held-out text, `definitions/val` WordNet's, `code/val` Python of other packages.

It prints how much of each held-out text is in the training texts. OUT.tar.xz beside OUT has the files that a run reads.
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from experiments.checkpoint.texts import definitions, prose, shared
from experiments.language.data import OTHER_DOCUMENTS, pack, read_lines, split, write_lines
from thoughtbubbles.training.data.prepare import prepare

AGREEMENT_FILE = "agreement.jsonl"
FOLDERS = {
    "english": (("train",), "val"),
    "mixed": (("train", "prose"), "tuning"),
    "tuning": (("val",), "tuning"),
    "definitions": (("val",), "definitions"),
    "code": (("val",), "code"),
}
"""Of each folder the texts to learn from, and the one that is held out."""
CARRIED = {"english": ("train", "val"), "mixed": ("train", "val"), "tuning": ("val",), "definitions": ("val",),
           "code": ("val",)}  # fmt: skip


def main() -> None:
    """Write the folders and the archive, and print their sizes."""
    args = _arguments()
    out: Path = args.out
    texts = out / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    files = {name: write_lines(texts / f"{name}.jsonl", lines) for name, lines in _texts(args).items()}
    for name, (train, val) in FOLDERS.items():
        index = prepare([files[each] for each in train], [files[val]], out / name, str(args.tokenizer))
        print(f"{out / name}: {index.train.tokens:,} and {index.val.tokens:,} tokens", flush=True)
    for learned in ("train", "prose"):
        for held in ("val", "tuning", "definitions", "code"):
            part = shared(_documents(files[held]), _documents(files[learned]))
            print(f"{part:.2%} of the sequences of 13 words in {held} are in {learned}", flush=True)
    shutil.copyfile(args.agreement, out / AGREEMENT_FILE)
    shutil.rmtree(texts)
    print(f"{pack(out, CARRIED, [AGREEMENT_FILE])}", flush=True)


def _texts(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the lines of each text."""
    learned, tuned = split(read_lines(args.english / "train.jsonl.gz"))
    written = map(prose, _of(read_lines(args.code / "train.jsonl.gz")))
    return {
        "train": learned,
        "tuning": tuned,
        "val": list(read_lines(args.english / "val.jsonl.gz")),
        "prose": [_line(text) for text in dict.fromkeys(written) if text],
        "definitions": [_line(text) for text in definitions(args.wordnet)],
        "code": list(islice(read_lines(args.code / "ood.jsonl.gz"), OTHER_DOCUMENTS)),
    }


def _line(text: str) -> str:
    return json.dumps({"text": text}) + "\n"


def _of(lines: Iterable[str]) -> Iterator[str]:
    """Yield the text of each line."""
    yield from (json.loads(line)["text"] for line in lines)


def _documents(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from _of(file)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--english", type=Path, required=True)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--agreement", type=Path, required=True, help="subject-verb agreement, as `evaluate` reads it")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the vocabulary: a .tiktoken file")
    parser.add_argument("--out", type=Path, default=Path("data/checkpoint"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
