"""The notebooks of the documentation run from the first cell to the last."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def code(notebook: Path) -> str:
    """The code of all cells, as a script: no notebook uses what only Jupyter has."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def files(printed: str) -> list[str]:
    """The files that lines of an output name: the rest of it may differ between machines."""
    return re.findall(r"^[\w/-]+\.\w+\b", printed, re.MULTILINE)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_was_run(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert outputs


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    paths = [str(ROOT), str(ROOT / "clients" / "python")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code(notebook)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    shown = [output["text"] for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stdout"]
    assert files(ran.stdout) == files("".join(shown))
