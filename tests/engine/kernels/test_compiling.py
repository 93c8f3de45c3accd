"""Kernels are compiled before they are launched; where there is no device, for the name of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.kernels.conftest import ON_GPU

NAMED = """
import sys, torch, triton, triton.language as tl
from contextlib import nullcontext
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from thoughtbubbles.engine.cuda.compiling import _launched, compile_launched


class Named:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


def name_device():
    driver.set_active(Named())
    torch.cuda.device = lambda device: nullcontext()


"""
PROGRAM = """
@triton.jit
def add(x, amount, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(x + at, tl.load(x + at) + amount)


if not torch.cuda.is_available():
    name_device()
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


STEPS = """
from benchmarks.shapes import numbered_tokens
from thoughtbubbles.engine import Engine, EngineConfig
from thoughtbubbles.engine.cuda.decode_batch import DeviceBatch
from thoughtbubbles.engine.cuda.executor import make_device_sampler
from thoughtbubbles.engine.cuda.forward import DeviceForward
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.sampler import Sampler
from thoughtbubbles.model import ModelConfig, Thoughtbubbles

name_device()
sys.modules["thoughtbubbles.engine.engine"]._require_float8 = lambda device: None
sys.modules["thoughtbubbles.engine.device"].warm_up = lambda *_: None
dtype, cache_dtype = sys.argv[1:]
config = ModelConfig(
    vocab_size=1024, block_size=64, max_block_size=128, n_layer=3, n_head=2, n_embd=64, fork_layers=(1, 2)
)
model, tokenizer = Thoughtbubbles(config).eval().to(getattr(torch, dtype)), numbered_tokens(1024)
settings = EngineConfig(
    max_batch_size=16, cache_bytes=1 << 24, executor="portable",
    cache_dtype=None if cache_dtype == dtype else cache_dtype,
)
cache, tally = Engine(model, tokenizer, settings).cache, ForkTally()
sampler = make_device_sampler(model, cache, Sampler(tokenizer), drafted=8)
batch = DeviceBatch(model, cache, tally, sampler)
forward = DeviceForward(model, cache, tally, sampler=sampler, sizes=(64, 128))


def launch():
    for step in (*batch._steps.values(), *forward._steps):
        step.prepare()
    batch._staging.prepare()


def names(kernels):
    return sorted(kernel.fn.__name__ for kernel in kernels)


wanted, compiled = names(_launched(launch).values()), []
assert {"_embed", "_fork", "_gather", "_average", "draw_best", "_report_words", "_write_words"} <= {*wanted}, wanted
knobs.runtime.jit_post_compile_hook = lambda *, fn, **_: compiled.append(fn.jit_function)
compile_launched(launch, torch.device("cpu"))
assert names(compiled) == wanted, f"compiled {names(compiled)} of {wanted}"
print("well")
"""


def run(folder: Path, program: str, *args: str) -> "subprocess.CompletedProcess[str]":
    script = folder / "program.py"
    script.write_text(NAMED + program, encoding="utf-8")
    root = str(Path(__file__).parents[3])
    environment = {"TRITON_CACHE_DIR": str(folder / "cache"), "TRITON_INTERPRET": "0", "PYTHONPATH": root}
    command, whole = [sys.executable, str(script), *args], {**os.environ, **environment}
    return subprocess.run(command, env=whole, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="Triton compiles for CUDA on Linux alone")
def test_what_is_launched_is_compiled_before(tmp_path: Path) -> None:
    done = run(tmp_path, PROGRAM)
    assert done.stdout == "well\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="where there is a device, other tests compile and launch every kernel")
@pytest.mark.skipif(sys.platform == "win32", reason="Triton compiles for CUDA on Linux alone")
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "float32"), ("bfloat16", "float8")])
def test_every_kernel_of_a_step_compiles_for_hopper(dtypes: tuple[str, str], tmp_path: Path) -> None:
    """The interpreter runs what the compiler refuses."""
    done = run(tmp_path, STEPS, *dtypes)
    assert done.stdout == "well\n", done.stderr
