"""`python -m thoughtbubbles.training` runs from a plain checkout with few packages; extras are imported where used."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = {"torch", "numpy", "safetensors", "tiktoken", "tqdm", "jinja2"}  # the last comes with torch


def at_once(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports when it is imported."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("floor", ["model", "training"])
def test_few_packages_are_needed(floor: str) -> None:
    drawing = ROOT / "training" / "analysis" / "figures.py"  # matplotlib, asked for by `analyse` alone
    kernels = ROOT / "training" / "kernels"  # Triton, asked for where it is
    transformers = ROOT / "model" / "huggingface" / "modeling.py"  # imported by `thoughtbubbles.hf` alone
    for path in sorted((ROOT / floor).rglob("*.py")):
        if path not in (drawing, transformers) and kernels not in path.parents:
            assert not set(at_once(path)) - FEW - set(sys.stdlib_module_names) - {"thoughtbubbles"}, path
