"""Published sets, from folders laid out as their repositories are; the library itself reads them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_prepare import documents_of
from thoughtbubbles import main
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.model.extras import install_command
from thoughtbubbles.training.data.published import published_documents
from thoughtbubbles.training.data.token_file import Index

datasets = pytest.importorskip("datasets", reason="the extra `datasets`")

TALK = [{"role": "user", "content": "Hello "}, {"role": "assistant", "content": "Hi.\n"}]
SUM = {"question": "Two and three?", "steps": ["<<2+3=5>>"], "answer": "5", "cot": "unused"}
CHOICE = {"question": " Which? ", "subject": "logic", "choices": ["this", "that", "both", "none"], "answer": 2}
CHOSEN = "Which?\nA. this\nB. that\nC. both\nD. none\nAnswer: C"
SUMMED = "Question: Two and three?\nAnswer: <<2+3=5>>\n#### 5"
TALKED = "User: Hello\n\nAssistant: Hi."
CASES: list[tuple[str, dict[str, Mapping[str, Any]], dict[str, str]]] = [  # name, files and their rows, texts
    ("openwebtext", {"plain_text/train-00000-of-00001.parquet": {"text": "a page"}}, {"train": "a page"}),
    (
        "pes2o",
        {
            "data/v2/train-00000-of-00001.json.gz": {"id": "1", "source": "s2orc", "text": "a paper", "version": "v2"},
            "data/v2/validation-00000-of-00001.json.gz": {"id": "2", "source": "s2ag", "text": "new", "version": "v2"},
        },
        {"train": "a paper", "val": "new"},
    ),
    ("fineweb", {"sample/10BT/000_00000.parquet": {"text": "web", "url": "u", "token_count": 1}}, {"train": "web"}),
    (
        "smoltalk",
        {f"data/all/{split}-00000-of-00001.parquet": {"messages": TALK, "source": "s"} for split in ("train", "test")},
        {"train": TALKED, "val": TALKED},
    ),
    (
        "gsm8k-aug",
        {f"data/{split}-00000-of-00001.parquet": SUM for split in ("train", "validation", "test")},
        {"train": SUMMED, "val": SUMMED},
    ),
    (
        "mmlu",
        {f"all/{split}-00000-of-00001.parquet": CHOICE for split in ("auxiliary_train", "validation", "test")},
        {"train": CHOSEN, "val": CHOSEN},
    ),
]
CONFIGURATIONS = {
    "fineweb": {"sample-10BT": {"train": "sample/10BT/*"}},
    "smoltalk": {"all": {"train": "data/all/train-*", "test": "data/all/test-*"}},
    "mmlu": {"all": {"auxiliary_train": "all/auxiliary_train-*", "validation": "all/validation-*"}},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own, for this test alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """A tokenizer of single bytes."""
    Tokenizer({bytes([b]): b for b in range(256)}, "bytes").save(tmp_path / "bytes.tiktoken")
    return tmp_path / "bytes.tiktoken"


def repository(folder: Path, name: str, files: Mapping[str, Mapping[str, Any]], copies: int = 2) -> Path:
    """A copy of a repository as it lies on the hub, each file with the same row so many times."""
    for path, row in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_list([dict(row)] * copies)
        if path.endswith(".parquet"):
            rows.to_parquet(folder / path)
        else:
            rows.to_json(folder / path, compression="gzip")
    configs = [
        {"config_name": config, "data_files": [{"split": s, "path": p} for s, p in splits.items()]}
        for config, splits in CONFIGURATIONS.get(name, {}).items()
    ]
    if configs:
        (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(("name", "files", "texts"), CASES, ids=[case[0] for case in CASES])
def test_a_published_set_is_written_out_as_text(
    tmp_path: Path, name: str, files: dict[str, Mapping[str, Any]], texts: dict[str, str]
) -> None:
    """Its parts, each row as it should read; and from any row on."""
    parts = published_documents(name, repository(tmp_path / "copy", name, files))
    assert {part: [each.text for each in documents.read()] for part, documents in parts.items()} == {
        part: [text] * 2 for part, text in texts.items()
    }
    assert [each.text for each in parts["train"].read(1)] == [texts["train"]]
    assert parts["train"].total == 2


def test_prepare_writes_the_parts_as_they_were_published(tmp_path: Path, ranks: Path) -> None:
    [(name, files, texts)] = [case for case in CASES if case[0] == "mmlu"]
    folder = repository(tmp_path / "copy", name, files)
    command = ["prepare", name, "--from", str(folder), "--tokenizer", str(ranks), "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    for part, text in texts.items():
        assert documents_of(tmp_path / "out", part) == [text] * 2
    assert list(Index.read(tmp_path / "out").train.sources) == ["cais/mmlu all auxiliary_train"]
    assert list(Index.read(tmp_path / "out").val.sources) == ["cais/mmlu all validation"]


def test_a_row_of_another_schema_is_named(tmp_path: Path, ranks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = repository(tmp_path / "copy", "openwebtext", {"plain_text/train-00000-of-00001.parquet": {"body": "x"}})
    command = ["prepare", "openwebtext", "--from", str(folder), "--tokenizer", str(ranks), "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "openwebtext plain_text/train-*.parquet, row 0: not of this set's schema" in capsys.readouterr().err


def test_without_a_network_the_way_out_is_told(
    tmp_path: Path, ranks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert main(["prepare", "mmlu", "--tokenizer", str(ranks), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "cais/mmlu from the Hugging Face hub: could not be loaded" in told
    assert "--from FOLDER" in told
    assert not (tmp_path / "out").exists()


def test_a_copy_that_is_not_there_is_not_looked_for_on_the_hub(
    tmp_path: Path, ranks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: pytest.fail("something was looked for"))
    command = ["prepare", "mmlu", "--from", "copies/mmlu", "--tokenizer", str(ranks), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert capsys.readouterr().err == "thoughtbubbles: error: from: copies/mmlu is not a folder\n"


def test_parquet_of_ones_own(tmp_path: Path, ranks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.Dataset.from_dict({"n": [1, 2], "text": ["eins", "zwei"]}).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"n": [1]}).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not at all")
    command = ["prepare", "--out", str(tmp_path / "out"), "--tokenizer", str(ranks), "--workers", "1", "--train"]
    assert main([*command, str(tmp_path / "a.parquet"), "--val", str(tmp_path / "a.parquet")]) == 0
    assert documents_of(tmp_path / "out", "train") == ["eins", "zwei"]
    assert main([*command, str(tmp_path / "b.parquet")]) == 2
    assert "b.parquet, row 0: a document needs a string field 'text'" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "c.parquet")]) == 2
    assert "c.parquet: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [[], ["mmlu", "--train", "a.txt"], ["mmlu", "--val", "a.txt"], ["--train", "a.txt", "--from", "copy"]]
)
def test_flags_that_contradict_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *flags, "--tokenizer", "gpt2", "--out", "never"]) == 2
    assert capsys.readouterr().err.startswith("thoughtbubbles: error: prepare: ")


@pytest.mark.parametrize("missing", ["datasets", "pyarrow"])
def test_without_the_extra_training_imports_and_says_what_to_install(
    tmp_path: Path, ranks: Path, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    (tmp_path / "a.parquet").write_bytes(b"")
    what = ["mmlu"] if missing == "datasets" else ["--train", str(tmp_path / "a.parquet")]
    assert main(["prepare", *what, "--tokenizer", str(ranks), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    assert install_command("datasets") in capsys.readouterr().err
