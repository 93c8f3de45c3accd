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
WAITS = {"wait_for_previous", "_wait_if"}
EARLY = {
    "_fork": "lanes counts starts lengths time table kappas next_streams scores slots cache_scores projection "
             "fork_embedding scoring_weight scoring_bias norm_weight norm_bias",
    "_score": "norm_weight norm_bias projection",
    "_normalise": "weight bias added",
    "_paged_attention": "counts lengths starts lanes table keys values",
    "_project_heads": "weight gain shift bias live score slots cosines sines",
    "_gelu_linear": "weight gain shift bias live",
    "_residual_linear": "weight bias live residual score",
}  # fmt: skip
"""What kernels read before the kernel before has ended: weights, and what that one surely does not write. What earlier
ones write is there, since it waited for them itself."""
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


def names(nodes: list[ast.stmt]) -> set[str]:
    """What is handed to calls, but for sizes and settings, which are numbers."""
    inside = [arg for node in nodes for call in calls(node) for arg in (*call.args, *(k.value for k in call.keywords))]
    return {node.id for arg in inside for node in ast.walk(arg) if isinstance(node, ast.Name)}


def pointers(kernel: ast.FunctionDef) -> set[str]:
    numbers = {"rows", "width", "half", "outputs", "block_size", "scale", "table_stride", "head_stride"}
    return {arg.arg for arg in kernel.args.args if not arg.annotation and not arg.arg.endswith("eps")} - numbers


def test_kernels_that_start_early_read_only_what_is_there_and_write_nothing() -> None:
    found = dict(early())
    assert {*EARLY} < {*found}
    assert {"draw_part", "draw_best", "_average", "_eight_bit_attention"} <= {*found}
    for name, kernel in found.items():
        waits = [call.lineno for call in calls(kernel) if called(call) in WAITS]
        assert waits, f"{name} does not wait"
        assert len(waits) == 1 or name == "_project_heads", f"{name} waits {len(waits)} times"
        before = [node for node in kernel.body if node.lineno < waits[-1]]
        assert not {called(call) for node in before for call in calls(node)} & {"store", "atomic_add"}, name
        handed = names(before) & pointers(kernel)
        assert handed <= {*EARLY.get(name, "").split()}, f"{name} reads {handed} before it waits"


def test_a_first_projection_waits_before_it_reads_what_a_fork_writes() -> None:
    """A fork writes scores, slots and angles, and the next kernel is a projection: the first wait is for that one."""
    kernel = dict(early())["_project_heads"]
    first, last = (call for call in calls(kernel) if called(call) == "_wait_if")
    assert [ast.unparse(call) for call in (first, last)] == ["_wait_if(FIRST)", "_wait_if(not FIRST)"]
    before = [node for node in kernel.body if node.lineno < first.lineno]
    assert names(before) & pointers(kernel) <= {"weight", "gain", "shift"}


@pytest.mark.gpu
def test_tokens_are_those_of_kernels_that_start_one_after_the_other(
    small_model: Thoughtbubbles, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, logprobs=0)
    early_ones = make_engine(small_model).generate(PROMPTS, params)
    for name in SOURCES:
        if hasattr(module := pytest.importorskip(f"{kernels.__name__}.{name}"), "overlapped"):
            monkeypatch.setattr(module, "overlapped", lambda *_: {})
    monkeypatch.setattr(sampler, "overlapped", lambda *_: {})
    others = make_engine(small_model).generate(PROMPTS, params)
    assert [c.token_ids for c in early_ones] == [c.token_ids for c in others]
    assert [[e.logprob for e in c.events] for c in early_ones] == [[e.logprob for e in c.events] for c in others]
