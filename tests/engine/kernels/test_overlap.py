"""A kernel that may start before the one before it has ended waits before it writes, and computes the same."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.kernels.conftest import MakeEngine
from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.engine.cuda import kernels, sampler
from thoughtbubbles.model import Thoughtbubbles

SOURCES = {path.stem: ast.parse(path.read_text()) for path in Path(kernels.__path__[0]).glob("*.py")}
LAUNCHING = {**SOURCES, "sampler": ast.parse(Path(sampler.__file__).read_text())}
WAITS = {"wait_for_previous", "_read_weights_ahead"}
PROMPTS = [[5, 9, 3, 3, 3, 7], [1, 2], [8] * 7]


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def early() -> Iterator[tuple[str, ast.FunctionDef]]:
    """The kernels that are launched with `overlapped`; the sampler's are written in several files."""
    drawing = ("sampling", "selection", "adjusting")
    for name, tree in LAUNCHING.items():
        bodies = [each for source in (drawing if name == "sampler" else (name,)) for each in SOURCES[source].body]
        functions = {node.name: node for node in bodies if isinstance(node, ast.FunctionDef)}
        for call in calls(tree):
            options = [each.value for each in call.keywords if each.arg is None]
            if any(isinstance(each, ast.Call) and called(each) == "overlapped" for each in options):
                assert isinstance(call.func, ast.Subscript)
                assert isinstance(call.func.value, ast.Name)
                yield call.func.value.id, functions[call.func.value.id]


def test_kernels_that_start_early_wait_before_they_read_or_write() -> None:
    """But weights, which `_normalise` reads before."""
    found = [*early()]
    assert {"_project_heads", "_gelu_linear", "_residual_linear", "_normalise", "_paged_attention", "draw_part",
            "draw_best"} <= {*dict(found)}  # fmt: skip
    for name, kernel in found:
        waits = [call.lineno for call in calls(kernel) if called(call) in WAITS]
        assert len(waits) == 1, f"{name} waits {len(waits)} times"
        for call in calls(kernel):
            if called(call) in ("load", "store", "atomic_add"):
                assert call.lineno > waits[0], f"{name} reads or writes before it waits"
    assert any(called(call) == "wait_for_previous" for call in calls(SOURCES["linear"]))


@pytest.mark.gpu
def test_tokens_are_those_of_kernels_that_start_one_after_the_other(
    small_model: Thoughtbubbles, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, logprobs=0)
    early_ones = make_engine(small_model).generate(PROMPTS, params)
    for name in SOURCES:
        if hasattr(module := pytest.importorskip(f"{kernels.__name__}.{name}"), "overlapped"):
            monkeypatch.setattr(module, "overlapped", lambda _: {})
    monkeypatch.setattr(sampler, "overlapped", lambda _: {})
    others = make_engine(small_model).generate(PROMPTS, params)
    assert [c.token_ids for c in early_ones] == [c.token_ids for c in others]
    assert [[e.logprob for e in c.events] for c in early_ones] == [[e.logprob for e in c.events] for c in others]
