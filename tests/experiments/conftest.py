"""The tiny study, as a file and as it is read, and the folders that it learns from."""

from pathlib import Path

import pytest

from experiments.language.measure import Evaluation
from experiments.runner.plan import Study, read_study
from tests.experiments.harness import TINY
from thoughtbubbles.training.data.prepare import prepare


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def study(toml: Path) -> Study:
    return read_study(toml, Evaluation)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `experiments.language.data`, of a few lines."""
    folder = tmp_path_factory.mktemp("data")
    for name, words in (
        ("train", "bubbles of token"),
        ("english", "bubbles in"),
        ("tuning", "forks of"),
        ("code", "def"),
    ):
        documents = [" ".join(f"the {i % 7} {words} {i} fork {j} times" for i in range(9)) for j in range(6)]
        paths = [folder / f"{name}-{i}.txt" for i in range(len(documents))]
        for path, document in zip(paths, documents, strict=True):
            path.write_text(document, encoding="utf-8")
    files = {name: sorted(folder.glob(f"{name}-*.txt")) for name in ("train", "english", "tuning", "code")}
    prepare(files["train"], files["english"], folder / "english", 280)
    for name in ("tuning", "code"):
        prepare(files["train"], files[name], folder / name, str(folder / "english" / "tokenizer.tiktoken"))
    return folder
