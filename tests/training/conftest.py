"""The prepared folder that training tests share."""

from pathlib import Path

import pytest

from tests.training.harness import HELD_OUT, TEXTS, VOCAB, write_json_lines
from thoughtbubbles.training.data.prepare import prepare


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.bin`, `val.bin`, their vocabulary and index."""
    folder = tmp_path_factory.mktemp("corpus")
    train, val = (write_json_lines(folder / f"{n}.jsonl", t) for n, t in (("train", TEXTS), ("val", HELD_OUT)))
    prepare([train], [val], folder / "prepared", VOCAB)
    return folder / "prepared"
