"""The documentation site has every page and is built without a warning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which names a Python function."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def pages(part: object) -> set[str]:
    """Every page that the navigation leads to."""
    if isinstance(part, str):
        return {part}
    return set().union(*(pages(each) for each in (part.values() if isinstance(part, dict) else part)))


def test_the_navigation_leads_to_every_page() -> None:
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    notebooks = {path.relative_to(DOCS).with_suffix(".md").as_posix() for path in DOCS.rglob("*.ipynb")}
    assert written | notebooks <= pages(SITE["nav"])


@pytest.mark.slow
def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "reference" / "engine.html").read_text(encoding="utf-8")
    assert 'id="thoughtbubbles.engine.SamplingParams.temperature"' in reference
    assert (tmp_path / "PAPER_TO_CODE.html").is_file()
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="benchmarks/results/device-h200.txt.html"' in home
    assert 'src="images/playground-beside.png"' in home
