"""A barrier for all programs of a kernel, which must run at the same time: launch it with `launch_cooperative_grid`.

The counter only grows, by one for each program and barrier. A kernel in which every program passes the same barriers
leaves a multiple of their number, from which the next one counts on. One program alone waits for nobody.
"""

import triton
import triton.language as tl


@triton.jit
def first_goal(arrivals, PROGRAMS: tl.constexpr):
    """Return the count at which the first barrier of this kernel opens: it cannot open before this program arrives."""
    return (tl.load(arrivals, volatile=True) // PROGRAMS + 1) * PROGRAMS


@triton.jit
def arrive(arrivals, PROGRAMS: tl.constexpr):
    """Let all programs see what this one has written, and count it as arrived."""
    if PROGRAMS > 1:
        tl.debug_barrier()  # all threads write before one of them counts the program
        tl.atomic_add(arrivals, 1, sem="release")


@triton.jit
def wait(arrivals, goal, PROGRAMS: tl.constexpr):
    """Wait until the counter reaches `goal`, and see what the programs had written. Return the next barrier's goal."""
    if PROGRAMS > 1:
        while _acquired(arrivals) < goal:
            pass
        tl.debug_barrier()
    return goal + PROGRAMS


@triton.jit
def _acquired(counter):
    """Return a counter's value; later reads see what was written before the releases that it counts."""
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.s64 $0, [$1];", "=l,l", [counter], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def prefetch(pointers):
    """Start to bring the cache lines of these addresses into the second-level cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )
