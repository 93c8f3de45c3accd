"""In continuous integration what is missing fails, with its reason."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="no browser")
def test_marked(): pass

def test_called():
    pytest.skip("no Prometheus")

@pytest.fixture
def folder():
    pytest.importorskip("nobody_has_this", reason="no torch-scatter")

def test_fixture(folder): pass

@pytest.mark.skip(reason="needs 1 CUDA device(s), found 0")
def test_gpu(): pass

@pytest.mark.xfail
def test_expected(): assert False
"""
MODULE = 'import pytest\npytest.skip("no module", allow_module_level=True)'


def run(folder: Path, **ci: str) -> tuple[int, str]:
    """Exit status and output of pytest over `folder`, without the plugins of other packages, which take seconds."""
    others = {name: value for name, value in os.environ.items() if name != "CI"}
    environment = {**others, **ci, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "tests.ci_skips", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, check=False)
    return done.returncode, done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_items.py").write_text(TESTS)
    return tmp_path


def test_elsewhere_a_skip_is_a_skip(folder: Path) -> None:
    status, output = run(folder)
    assert status == 0
    assert "4 skipped, 1 xfailed" in output


def test_in_ci_it_is_a_failure(folder: Path) -> None:
    status, output = run(folder, CI="true")
    assert status == 1
    assert "1 failed, 1 skipped, 1 xfailed, 2 errors" in output
    for reason in ("no browser", "no Prometheus", "no torch-scatter"):
        assert reason in output


def test_a_module_that_is_skipped_too(folder: Path) -> None:
    (folder / "test_module.py").write_text(MODULE)
    status, output = run(folder, CI="true")
    assert status == 2
    assert "no module" in output
