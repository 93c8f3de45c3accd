"""Every Triton kernel is launched by keyword: of up to 28 arguments, two that change places raise no error.

Triton's interpreter ignores a keyword that the kernel does not have, so names are compared as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for floor in ("engine", "training")
    for path in (ROOT / floor).rglob("*.py")
    if "triton" in path.read_text(encoding="utf-8")
)
OPTIONS = {"num_warps", "num_stages", "num_ctas", "enable_fp_fusion", "maxnreg"}
"""Keywords of Triton's own."""
RESERVED = OPTIONS | {"grid", "warmup", "debug", "device", "device_type", "stream", "instrumentation_mode", "arch"}
"""Names that a parameter launched by keyword cannot have: Triton's compiler refuses or misreads them."""

Parameters = dict[str, set[str]]


def kernels(source: str) -> Parameters:
    """The parameters of each function in `source` that Triton compiles."""
    return {
        node.name: {each.arg for each in node.args.args}
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
    }


def launches(source: str) -> Iterator[tuple[str, ast.Call]]:
    """The name of the kernel, and the call, of each `kernel[grid](…)` and `wrap_triton(kernel)[grid](…)`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            kernel = node.func.value
            if isinstance(kernel, ast.Call) and ast.unparse(kernel.func) == "wrap_triton":
                kernel = kernel.args[0]
            yield ast.unparse(kernel).rsplit(".", maxsplit=1)[-1], node


def only_options(keyword: ast.keyword) -> bool:
    """Whether it is `**overlapped(…)`, which passes keywords of Triton's own and no others."""
    value = keyword.value
    return keyword.arg is None and isinstance(value, ast.Call) and ast.unparse(value.func) == "overlapped"


def violations(source: str, elsewhere: Parameters) -> list[str]:
    """What is wrong with the launches in `source`, of its own kernels or of those `elsewhere`."""
    known = elsewhere | kernels(source)
    found = []
    for name, call in launches(source):
        if name not in known:
            continue
        named = {keyword.arg for keyword in call.keywords if not only_options(keyword)}
        if call.args or None in named:
            found.append(f"{name} in line {call.lineno} is not launched by keyword")
        elif wrong := known[name] ^ (named - OPTIONS):
            found.append(f"{name} in line {call.lineno}: missing or unknown {sorted(map(str, wrong))}")
    return found


ELSEWHERE = {name: parameters for path in FILES for name, parameters in kernels(path.read_text("utf-8")).items()}
LAUNCHED = {name for path in FILES for name, _ in launches(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_are_launched_by_keyword(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), ELSEWHERE) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_kernel_has_a_parameter_that_triton_reserves(path: Path) -> None:
    for name, parameters in kernels(path.read_text(encoding="utf-8")).items():
        assert name not in LAUNCHED or not parameters & RESERVED, name


def test_every_kernel_with_a_grid_is_found() -> None:
    """The files that launch kernels today, so that the test above has something to look at."""
    found = {str(path.relative_to(ROOT)) for path in FILES if any(launches(path.read_text(encoding="utf-8")))}
    assert found >= {
        *(f"engine/cuda/kernels/{name}.py" for name in ("attention", "forking", "linear", "prefill")),
        "engine/cuda/sampler.py",
        *(f"training/kernels/{name}.py" for name in ("cross_entropy", "fork_scores", "gelu", "heads", "residual")),
    }


KERNEL = """
@triton.jit(do_not_specialize=["n"])
def kernel(x, n, SIZE: tl.constexpr):
    pass
"""


@pytest.mark.parametrize(
    ("launch", "wrong"),
    [
        ("kernel[(1,)](x=x, n=n, SIZE=4, num_warps=8)", 0),
        ("wrap_triton(kernel)[(1,)](x=x, n=n, SIZE=4)", 0),
        ("module.kernel[(1,)](n=n, x=x, SIZE=4)", 0),
        ("kernel[(1,)](x=x, n=n, SIZE=4, **overlapped(x))", 0),
        ("kernel[(1,)](x=x, n=overlapped(x), **overlapped(x))", 1),
        ("dict[str, int](x)", 0),
        ("kernel[(1,)](x, n, SIZE=4)", 1),
        ("wrap_triton(kernel)[(1,)](x, n=n, SIZE=4)", 1),
        ("module.kernel[(1,)](*both, SIZE=4)", 1),
        ("kernel[(1,)](**all_of_them)", 1),
        ("kernel[(1,)](x=x, SIZE=4)", 1),
        ("kernel[(1,)](x=x, n=n, m=n, SIZE=4)", 1),
    ],
)
def test_what_is_not_by_keyword_is_found(launch: str, wrong: int) -> None:
    assert len(violations(f"{KERNEL}\n{launch}\n", {})) == wrong
