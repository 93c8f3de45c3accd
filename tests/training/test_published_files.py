"""Token files that others published, as they are: uint16, GPT-2's ids, no index."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.training.data.corpus import Corpus
from thoughtbubbles.training.data.progress import Progress
from thoughtbubbles.training.data.token_file import GPT2_SHA256, Index, read_tokenizer, read_tokens

GPT2_CACHE = Path(__file__).parents[3] / "shared" / "tiktoken"
IDS = {"train": np.arange(50, dtype=np.uint16) * 1000, "val": np.array([50256, 1, 2, 3], dtype=np.uint16)}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for split, ids in IDS.items():
        ids.tofile(tmp_path / f"{split}.bin")
    return tmp_path


def test_they_load_as_they_are(published: Path) -> None:
    index = Index.read(published)
    assert (index.dtype, index.vocab_size) == ("uint16", 50257)
    assert index.train.tokens == 50
    assert index.train.sha256 == hashlib.sha256(IDS["train"].tobytes()).hexdigest()
    for split, ids in IDS.items():
        assert read_tokens(published, split).tolist() == ids.tolist()
    assert sorted(path.name for path in published.iterdir()) == ["train.bin", "val.bin"]  # nothing is written there


def test_what_prepare_left_half_done_does_not_pass_for_published(published: Path) -> None:
    Progress({}).save(published)
    with pytest.raises(ValueError, match=r"has no index\.json"):
        Index.read(published)


def test_their_ids_are_those_of_gpt2(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not GPT2_CACHE.is_dir():
        pytest.skip("GPT-2's vocabulary is not in ../shared/tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(GPT2_CACHE))
    tokenizer = read_tokenizer(published)
    assert tokenizer.vocab_size == Index.read(published).vocab_size
    tokenizer.save(published / "saved.tiktoken")
    assert hashlib.sha256((published / "saved.tiktoken").read_bytes()).hexdigest() == GPT2_SHA256
    assert Corpus.open(published, 4, seed=0).loader.batch(0, 3).shape == (3, 5)


def test_a_prepared_folder_keeps_its_own_tokenizer(data: Path) -> None:
    assert isinstance(read_tokenizer(data), Tokenizer)
    assert read_tokenizer(data).vocab_size == Index.read(data).vocab_size
