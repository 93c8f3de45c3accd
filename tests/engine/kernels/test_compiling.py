"""Kernels are compiled before they are launched; where there is no device, for the name of one."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch, triton, triton.language as tl
from contextlib import nullcontext
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from thoughtbubbles.engine.cuda.compiling import compile_launched


@triton.jit
def add(x, amount, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(x + at, tl.load(x + at) + amount)


class Named:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


if not torch.cuda.is_available():
    driver.set_active(Named())
    torch.cuda.device = lambda device: nullcontext()
compiled, x = [], torch.zeros(64, device="cuda" if torch.cuda.is_available() else "cpu")
knobs.runtime.jit_post_compile_hook = lambda *, repr, **_: compiled.append(repr)
launch = lambda: [add[(1,)](x, 2.0, SIZE=size) for size in (16, 32, 16)]
compile_launched(launch, x.device)
assert len(compiled) == 2, compiled
assert not x.any(), "only compiled"
if torch.cuda.is_available():
    launch()
    assert len(compiled) == 2, "compiled before"
    assert x[:32].tolist() == [6.0] * 16 + [2.0] * 16
print("well")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Triton compiles for CUDA on Linux alone")
def test_what_is_launched_is_compiled_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    script = tmp_path_factory.mktemp("compiling") / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    environment = {"TRITON_CACHE_DIR": str(script.parent / "cache"), "TRITON_INTERPRET": "0"}
    command, whole = [sys.executable, str(script)], {**os.environ, **environment}
    done = subprocess.run(command, env=whole, capture_output=True, text=True, check=False)
    assert done.stdout == "well\n", done.stderr
