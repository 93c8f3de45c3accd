"""The study's splits never divide a document or share one, and the archive has what a run reads."""

import gzip
import json
import sys
import tarfile
from pathlib import Path

import pytest

from experiments.language.data import ONE_IN, main
from thoughtbubbles.training.data.token_file import read_tokenizer, read_tokens


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def documents(folder: Path, split: str) -> list[str]:
    """Return the texts of a token file."""
    tokenizer, ids = read_tokenizer(folder), read_tokens(folder, split).tolist()
    starts = [i for i, token in enumerate(ids) if token == tokenizer.end_of_text]
    return [tokenizer.decode(ids[a + 1 : b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


def test_the_splits_and_their_archive(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: [f"{name} document {i} of bubbles" for i in range(count)] for name, count in
             (("train", 2 * ONE_IN + 1), ("val", 5), ("ood", 60))}  # fmt: skip
    write(tmp_path / "english" / "train.jsonl.gz", texts["train"])
    write(tmp_path / "english" / "val.jsonl.gz", texts["val"])
    write(tmp_path / "code" / "ood.jsonl.gz", texts["ood"])
    out = tmp_path / "language"
    words = [f"--english={tmp_path}/english", f"--code={tmp_path}/code", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["study_data", *words, f"--tokenizer={data}/english/tokenizer.tiktoken"])
    main()
    learned, tuning = documents(out / "english", "train"), documents(out / "tuning", "val")
    assert tuning == [texts["train"][i] for i in (0, ONE_IN, 2 * ONE_IN)]
    assert learned == [text for text in texts["train"] if text not in tuning]
    assert documents(out / "english", "val") == texts["val"]
    assert documents(out / "code", "val") == texts["ood"][:48]
    with tarfile.open(out.with_suffix(".tar.xz")) as archive:
        archive.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there" / "language"
    assert documents(there / "english", "train") == learned
    assert documents(there / "tuning", "val") == tuning
    assert documents(there / "code", "val") == texts["ood"][:48]
