"""Kernels are launched by keyword: with ten arguments of one type, a swap of two would be silent."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

KERNELS = sorted((Path(__file__).parents[3] / "training" / "kernels").glob("*.py"))


def launches(source: str) -> Iterator[ast.Call]:
    """Calls of the form `kernel[grid](…)`."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and isinstance(node.func.value, ast.Call)
        ):
            yield node


def test_the_launches_are_found() -> None:
    assert sum(len(list(launches(path.read_text(encoding="utf-8")))) for path in KERNELS) == 9


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_no_launch_has_positional_arguments(path: Path) -> None:
    assert not [call.lineno for call in launches(path.read_text(encoding="utf-8")) if call.args]
