"""Neither processes nor a kill change a byte of what `prepare` makes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.harness import HELD_OUT, TEXTS, VOCAB, write_json_lines
from thoughtbubbles.training.data import encoding
from thoughtbubbles.training.data.corpus_writer import LOCK_FILE, CorpusWriter, only_preparation
from thoughtbubbles.training.data.documents import Documents, FileDocuments
from thoughtbubbles.training.data.progress import PROGRESS_FILE, Progress
from thoughtbubbles.training.data.rows import Document
from thoughtbubbles.training.data.token_file import Index, read_tokens

MADE = ("train.bin", "val.bin", "tokenizer.tiktoken", "index.json")


class KilledError(Exception):
    """Stands for SIGKILL: nothing of the preparation runs after it."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a dozen chunks instead of one."""
    monkeypatch.setattr(encoding, "_CHARACTERS_AT_ONCE", 1000)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Documents]:
    train, val = (write_json_lines(tmp_path / f"{n}.jsonl", t) for n, t in (("train", TEXTS), ("val", HELD_OUT)))
    return {"train": FileDocuments([train]), "val": FileDocuments([val])}


def write(
    inputs: dict[str, Documents], out: Path, workers: int = 1, val_share: float = 0.1, tokenizer: str | int = VOCAB
) -> Index:
    return CorpusWriter(inputs, out, tokenizer, val_share=val_share, workers=workers).write()


def content(folder: Path) -> dict[str, bytes]:
    assert {path.name for path in folder.iterdir()} - {LOCK_FILE} == {*MADE}
    return {name: (folder / name).read_bytes() for name in MADE}


@pytest.mark.parametrize("saves", [1, 2, 7])
def test_a_killed_preparation_goes_on_and_makes_the_same_bytes(
    inputs: dict[str, Documents], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """KilledError after the bytes of a chunk are written and before the progress file is."""
    write(inputs, tmp_path / "whole")
    left, save = [saves], Progress.save
    encoded: list[str] = []

    def save_or_die(progress: Progress, folder: Path) -> None:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        save(progress, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "save", save_or_die)
        with pytest.raises(KilledError):
            write(inputs, tmp_path / "parts")
    assert not (tmp_path / "parts" / "index.json").exists()
    call = encoding.Encoder.__call__

    def counted(encoder: encoding.Encoder, texts: list[str]) -> dict[str, encoding.Encoded]:
        encoded.extend(texts)
        return call(encoder, texts)

    monkeypatch.setattr(encoding.Encoder, "__call__", counted)
    write(inputs, tmp_path / "parts")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert (len(encoded) < len(TEXTS) + len(HELD_OUT)) == (saves > 1)  # the first save is of nothing done


def test_what_was_stopped_is_not_gone_on_with_for_other_input(
    inputs: dict[str, Documents], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(inputs, tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    other = {"train": FileDocuments([write_json_lines(tmp_path / "other.jsonl", TEXTS[:50])]), "val": inputs["val"]}
    tokenizer = str(tmp_path / "out" / "tokenizer.tiktoken")
    stopped = Progress({"a": "different plan"}, {"train": 9, "val": 9})
    stopped.save(tmp_path / "out")
    index = write(other, tmp_path / "out", tokenizer=tokenizer)
    assert (index.train.documents, index.val.documents) == (50, len(HELD_OUT))


def test_every_file_counts_for_what_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one name in several folders, and the order of files."""
    paths = [tmp_path / name / "text.jsonl" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        write_json_lines(path, TEXTS[:60])

    def plan(*files: Path) -> dict[str, object]:
        inputs: dict[str, Documents] = {"train": FileDocuments(files)}
        return CorpusWriter(inputs, tmp_path / "out", VOCAB, val_share=0.1, workers=1)._progress.plan

    first = plan(*paths)
    assert list(FileDocuments(paths).sources()) == ["a/text.jsonl", "b/text.jsonl"]
    assert plan(*reversed(paths)) != first
    write_json_lines(paths[0], TEXTS[60:])
    assert plan(*paths) != first


@pytest.fixture
def interrupted(inputs: dict[str, Documents], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose preparation was killed before it wrote the index."""
    with monkeypatch.context() as patch:
        patch.setattr(CorpusWriter, "_index", lambda writer: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            write(inputs, tmp_path / "out")
    return tmp_path / "out"


def start_over(inputs: dict[str, Documents], out: Path) -> None:
    """Do as the messages say, and prepare as the command does."""
    for name in (PROGRESS_FILE, "train.bin", "val.bin"):
        (out / name).unlink()
    with only_preparation(out):
        write(inputs, out)
    content(out)


def test_a_token_file_that_lost_bytes_is_not_filled_with_zeros(inputs: dict[str, Documents], interrupted: Path) -> None:
    (interrupted / "train.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"train\.bin is shorter than .* says; remove {PROGRESS_FILE} and both token"):
        write(inputs, interrupted)
    start_over(inputs, interrupted)


def test_damaged_progress_is_named(inputs: dict[str, Documents], interrupted: Path) -> None:
    progress = interrupted / PROGRESS_FILE
    progress.write_text(json.dumps({"plan": json.loads(progress.read_text())["plan"]}))
    with pytest.raises(ValueError, match=rf"{PROGRESS_FILE} is damaged \(.*\); remove it and both token files"):
        write(inputs, interrupted)
    start_over(inputs, interrupted)


def test_processes_change_nothing(inputs: dict[str, Documents], tmp_path: Path) -> None:
    write(inputs, tmp_path / "one")
    write(inputs, tmp_path / "two", workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_a_share_is_held_out_by_what_documents_say(tmp_path: Path) -> None:
    """Equal documents are on one side, and each is somewhere."""
    source = FileDocuments([write_json_lines(tmp_path / "all.jsonl", [*TEXTS, *TEXTS])])
    index = write({"train": source}, tmp_path / "out", val_share=0.2)
    held_out = [text for text in TEXTS if encoding.is_held_out(text, 0.2)]
    assert index.val.documents == 2 * len(held_out)
    assert index.train.documents == 2 * (len(TEXTS) - len(held_out))
    assert 0.1 < len(held_out) / len(TEXTS) < 0.3
    assert index.val.sources == index.train.sources
    with pytest.raises(ValueError, match=r"^all\.jsonl: no documents for val\.bin; 0\.00% are held out"):
        write({"train": source}, tmp_path / "none", val_share=1e-9)


@pytest.mark.parametrize(("settings", "name"), [({"workers": 0}, "workers"), ({"val_share": 1.0}, "val_share")])
def test_settings_that_cannot_be_are_named(
    inputs: dict[str, Documents], tmp_path: Path, settings: dict[str, int], name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        write(inputs, tmp_path / "out", **settings)


@pytest.mark.parametrize("tokenizer", [100_000, "no-such-tokenizer"])
def test_a_mistake_in_the_tokenizer_costs_no_finished_folder(
    inputs: dict[str, Documents], tmp_path: Path, tokenizer: str | int
) -> None:
    write(inputs, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=r"is more than this text can fill|is not known"):
        write(inputs, tmp_path / "out", tokenizer=tokenizer)
    assert content(tmp_path / "out") == before


def test_unreadable_text_costs_no_finished_folder(inputs: dict[str, Documents], tmp_path: Path) -> None:
    write(inputs, tmp_path / "out")
    before = content(tmp_path / "out")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"bad\.txt:1: "):
        write({**inputs, "train": FileDocuments([tmp_path / "bad.txt"])}, tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_token_files_of_others_are_not_replaced(inputs: dict[str, Documents], tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / f"{part}.bin").write_bytes(b"\1\0\2\0")
    with pytest.raises(ValueError, match=r"^out: .* has token files that `prepare` did not write; choose"):
        write(inputs, tmp_path)
    assert (tmp_path / "train.bin").read_bytes() == b"\1\0\2\0"


def test_a_run_keeps_the_tokens_it_reads_when_its_folder_is_prepared_anew(
    inputs: dict[str, Documents], tmp_path: Path
) -> None:
    """The new files are longer: where a run reads a truncated file, it ends by SIGBUS, and so would this test."""
    write({"train": inputs["val"], "val": inputs["val"]}, tmp_path / "out", tokenizer=260)
    reading = {part: read_tokens(tmp_path / "out", part) for part in ("train", "val")}
    before = {part: ids.tolist() for part, ids in reading.items()}
    write({"train": inputs["train"], "val": inputs["train"]}, tmp_path / "out")
    assert {part: ids.tolist() for part, ids in reading.items()} == before
    assert read_tokens(tmp_path / "out", "train").tolist() != before["train"]


class BesideAnother(FileDocuments):
    """Documents that note, when read, that another preparation of `folder` is refused."""

    folder = Path()
    refused = 0

    def read(self, first: int = 0) -> Iterator[Document]:
        """As `FileDocuments.read`."""
        with pytest.raises(ValueError, match="another preparation is writing"), only_preparation(self.folder):
            pass
        self.refused += 1
        return super().read(first)


def test_another_preparation_is_refused_until_the_files_are_replaced_and_written(
    inputs: dict[str, Documents], tmp_path: Path
) -> None:
    write(inputs, tmp_path / "out")
    train = BesideAnother([tmp_path / "train.jsonl"])
    train.folder = tmp_path / "out"
    with only_preparation(train.folder):
        write({**inputs, "train": train}, train.folder)
    assert train.refused == 2  # for the vocabulary, before the files are replaced, and for their ids, after it
