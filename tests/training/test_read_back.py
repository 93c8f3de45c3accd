"""Kernels that the compiler writes wait for what they have stored before they load it again."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from thoughtbubbles.training.read_back import BARRIER, guard_read_backs

Compiler = Any
"""The compiler's class of kernels, whose types are its own."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """What writes Triton kernels, given back as it was."""
    pytest.importorskip("triton", reason="the compiler's kernels are Triton's")
    from torch._inductor.codegen import triton

    monkeypatch.setattr(triton.TritonKernel, "load", lambda self, name, index: self.body.writeline(f"load {name}"))
    with torch.compiler.config.patch(cache_key_tag=""):
        yield triton.TritonKernel


def loaded(compiler: Compiler, name: str) -> list[str]:
    """The lines of a kernel that loads `name`, having stored `a` in a loop before."""
    lines: list[str] = []
    kernel = SimpleNamespace(
        cse=SimpleNamespace(invalidated_stores={"a"}), body=SimpleNamespace(writeline=lines.append)
    )
    compiler.load(kernel, name, 0)
    return lines


def test_a_read_back_waits_and_no_other_load(compiler: Compiler) -> None:
    guard_read_backs()
    guard_read_backs()
    assert loaded(compiler, "a") == [BARRIER, "load a"]
    assert loaded(compiler, "b") == ["load b"]
    assert torch.compiler.config.cache_key_tag == "guarded read-backs", "kernels kept from before are not taken"


def test_a_compiler_that_waits_by_itself_is_left_alone(compiler: Compiler) -> None:
    def waiting(self: Compiler, name: str, index: object) -> None:
        self.body.writeline("tl.debug_barrier()")

    compiler.load = waiting
    guard_read_backs()
    assert compiler.load is waiting


def test_a_compiler_that_is_not_known_is_told_of(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "codegen_body", len)
    with pytest.warns(UserWarning, match="torch's compiler has changed"):
        guard_read_backs()
    assert loaded(compiler, "a") == ["load a"]


@pytest.mark.gpu
def test_what_is_compiled_is_right() -> None:
    """A row too long for one pass, stored as bfloat16 and loaded again: the loops lay it out differently."""
    from torch._inductor.utils import run_and_get_code

    def norm(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = (x + y).bfloat16()
        return total, F.layer_norm(total.float(), total.shape[-1:])

    guard_read_backs()
    x, y = torch.randn(2, 4096, 8192, device="cuda")
    compiled = torch.compile(norm, dynamic=False)
    want = norm(x, y)
    _, codes = run_and_get_code(compiled, x, y)
    assert BARRIER in "".join(codes)
    for _ in range(5):
        torch.testing.assert_close(compiled(x, y), want, rtol=1e-2, atol=1e-3)
