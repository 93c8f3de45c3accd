"""Words of 32 bits between the host's memory and a device's: kernels read and write pinned memory themselves.

That takes a launch. A copy of a few words takes three times as long, and the kernels of a step wait for it.
"""

import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.overlap import overlapped, wait_for_previous

WORDS_AT_ONCE = 1024
"""Words that a program writes at a time."""


def write_words(memory: Tensor, staged: Tensor, count: int) -> None:
    """Write `count` words to `memory`: `staged` (2,·) int32, which is pinned, has their offsets and their values."""
    programs = max(1, triton.cdiv(count, WORDS_AT_ONCE))
    _write_words[(programs,)](
        memory=memory, staged=staged, stride=staged.stride(0), count=count, BLOCK=WORDS_AT_ONCE
    )  # fmt: skip


@triton.jit(do_not_specialize=["count"])  # compiled once
def _write_words(memory, staged, stride, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(staged + i, mask=i < count)
    tl.store(memory + at, tl.load(staged + stride + i, mask=i < count), mask=i < count)


def report_words(words: Tensor, turn: Tensor, host: Tensor) -> None:
    """Write `words` (W,) int32 to row `turn` (1,) of `host` (R,W), which is pinned; the next launch to the next row."""
    _report_words[(1,)](
        words=words, turn=turn, host=host, count=len(words), ROWS=len(host), BLOCK=WORDS_AT_ONCE, **overlapped(words)
    )


@triton.jit
def _report_words(words, turn, host, count, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    wait_for_previous()
    row = tl.load(turn)
    into = host + row * count
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(into + i, tl.load(words + i, mask=i < count), mask=i < count)
    tl.debug_barrier()  # every thread has read the turn
    tl.store(turn, (row + 1) % ROWS)  # a count would overflow within days
