"""The tiny study, as a file and as it is read."""

from pathlib import Path

import pytest

from benchmarks.study_plan import Study, read_study
from tests.benchmarks.harness import TINY


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def study(toml: Path) -> Study:
    return read_study(toml)
