"""Training reads what was prepared or stops: a changed byte, another tokenizer and ids of no token are named."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.harness import MODEL, QUIET, VOCAB, never, stop_after
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.training.data import verification
from thoughtbubbles.training.data.corpus import Corpus
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.trainer import Trainer

LENGTH = MODEL.block_size


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A prepared folder to damage."""
    return Path(shutil.copytree(data, tmp_path / "prepared"))


def padded(folder: Path) -> Path:
    path = folder.parent / "mixture.toml"
    path.write_text(f'[sets.one]\ndata = "{folder}"\nweight = 1\nform = "padded"\n')
    return path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_id(path: Path, at: int | slice, value: int) -> None:
    """Write an id, and the file's new hash into the index, as a faulty writer of the file would."""
    ids = np.fromfile(path, dtype=np.uint16)
    ids[at] = value
    ids.tofile(path)
    index = json.loads((path.parent / "index.json").read_text())
    index[path.stem]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "index.json").write_text(json.dumps(index))


def change_index(folder: Path, **fields: object) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | fields))


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.tiktoken"])
@pytest.mark.parametrize("form", [lambda folder: folder, padded])
def test_a_flipped_bit_is_named(folder: Path, name: str, form: Callable[[Path], Path]) -> None:
    flip_a_bit(folder / name)
    with pytest.raises(ValueError, match=rf"^data: .*prepared/{name} is not the file that was prepared"):
        Corpus.open(form(folder), LENGTH, seed=0)


def test_a_flipped_bit_in_what_is_only_given_is_named(folder: Path) -> None:
    for split in ("train", "val"):
        tokens = json.loads((folder / "index.json").read_text())[split]["tokens"]
        given = np.arange(tokens, dtype=np.uint8) % 2
        given.tofile(folder / f"{split}.given.bin")
        index = json.loads((folder / "index.json").read_text())
        index[split]["given_sha256"] = hashlib.sha256(given.tobytes()).hexdigest()
        (folder / "index.json").write_text(json.dumps(index))
    path = padded(folder)
    path.write_text(path.read_text() + 'learn = "answers"\n')
    Corpus.open(path, LENGTH, seed=0)
    flip_a_bit(folder / "train.given.bin")
    with pytest.raises(ValueError, match=r"train\.given\.bin is not the file that was prepared"):
        Corpus.open(path, LENGTH, seed=0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_id_of_no_token_is_named_with_its_position(folder: Path, split: str) -> None:
    put_id(folder / f"{split}.bin", 77, VOCAB)
    reason = rf"^data: .*{split}\.bin has id {VOCAB} at token 77, and the vocabulary {VOCAB} ids"
    with pytest.raises(ValueError, match=reason):
        Corpus.open(folder, LENGTH, seed=0)


def test_an_id_of_no_token_in_published_files_is_named(tmp_path: Path) -> None:
    ids = np.arange(99, dtype=np.uint16)
    ids.tofile(tmp_path / "val.bin")
    ids[40] = 50257
    ids.tofile(tmp_path / "train.bin")
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thoughtbubbles.training.data.corpus.read_tokenizer", lambda _folder: tokenizer)
        with pytest.raises(ValueError, match=r"train\.bin has id 50257 at token 40, and the vocabulary 50257 ids"):
            Corpus.open(tmp_path, LENGTH, seed=0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tokenizer_sha256": "0" * 64}, r"tokenizer\.tiktoken is not the file that was prepared"),
        ({"vocab_size": VOCAB - 1}, r"tokenizer\.tiktoken has 320 ids where index\.json says 319"),
        ({"vocab_size": [VOCAB]}, r"index\.json: vocab_size, tokens and bytes must be whole numbers"),
        ({"dtype": "float32"}, r"index\.json: dtype must be uint16 or uint32, not 'float32'"),
        ({"train": [1]}, r"index\.json is not an index that `prepare` wrote"),
        ({"val": {}}, r"index\.json is not an index that `prepare` wrote"),
        ({"sizes": 1}, r"index\.json is not an index that `prepare` wrote"),
    ],
)
def test_an_index_that_does_not_fit_is_named(folder: Path, fields: dict[str, object], reason: str) -> None:
    change_index(folder, **fields)
    with pytest.raises(ValueError, match=reason):
        Corpus.open(folder, LENGTH, seed=0)


@pytest.mark.parametrize("content", ["[1]", "[" * 100_000, "{", "7"])
def test_an_index_that_is_no_object_is_named(folder: Path, content: str) -> None:
    (folder / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json: not (a )?JSON"):
        Corpus.open(folder, LENGTH, seed=0)


def test_an_empty_file_is_named(folder: Path) -> None:
    (folder / "train.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.bin holds 0 tokens where index\.json says"):
        Corpus.open(folder, LENGTH, seed=0)


def trainer(data: Path, out: Path) -> Trainer:
    return Trainer(MODEL, QUIET, data=data, out=out, ranks=Ranks(device=torch.device("cpu")), resume=False)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file is a large one."""
    monkeypatch.setattr(verification, "AT_ONCE_BYTES", 0)


@pytest.mark.usefixtures("large")
def test_a_large_file_is_verified_while_training_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps are made before the hash is known; then it stops, and nothing of it is saved."""
    flip_a_bit(folder / "train.bin")
    stepped = threading.Event()
    run = verification.FileCheck.run

    def late(check: verification.FileCheck, stopping: threading.Event) -> None:
        assert stepped.wait(60)
        run(check, stopping)

    stopped = trainer(folder, tmp_path / "run")
    monkeypatch.setattr(verification.FileCheck, "run", late)
    one_step = stopped._one_step

    def step() -> torch.Tensor:
        losses = one_step()
        if stopped.step == 2:
            stepped.set()
            stopped._verification.wait()
        return losses

    monkeypatch.setattr(stopped, "_one_step", step)
    with pytest.raises(ValueError, match=r"^data: .*train\.bin is not the file that was prepared"):
        stopped.run(never)
    assert stopped.step == 2
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.usefixtures("large")
def test_a_run_does_not_end_before_its_data_is_verified(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_a_bit(folder / "train.bin")
    ended = trainer(folder, tmp_path / "run")
    wait = ended._verification.wait
    begin = threading.Event()
    run = verification.FileCheck.run

    def late(check: verification.FileCheck, stopping: threading.Event) -> None:
        assert begin.wait(60)
        run(check, stopping)

    def wait_for_it() -> None:
        begin.set()
        wait()

    monkeypatch.setattr(verification.FileCheck, "run", late)
    monkeypatch.setattr(ended._verification, "wait", wait_for_it)
    with pytest.raises(ValueError, match=r"train\.bin is not the file that was prepared"):
        ended.run(never)
    assert ended.step == QUIET.steps
    assert not (tmp_path / "run" / "state").exists()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("form", [lambda folder: folder, padded])
def test_an_id_of_no_token_in_a_large_file_stops_its_batch(
    folder: Path, tmp_path: Path, form: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model would look it up: on a GPU that ends the process."""
    put_id(folder / "train.bin", slice(0, 1500, 2), VOCAB + 7)
    monkeypatch.setattr(verification.Verification, "_run", lambda self: None)
    with pytest.raises(ValueError, match=r"^data: .*train\.bin has id 327 at token \d+, and the vocabulary 320 ids"):
        trainer(form(folder), tmp_path / "run").run(never)


@pytest.mark.usefixtures("large")
def test_a_large_file_that_is_whole_is_verified_once(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path / "run")
    run.run(stop_after(1))
    run.run(never)
    assert run._verification._left == []
