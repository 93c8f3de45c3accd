"""A barrier for all programs of a kernel, which must run at the same time: launch it with `launch_cooperative_grid`.

The counter only grows, by one for each program and barrier. A kernel in which every program passes the same barriers
leaves a multiple of their number, from which the next one counts on. One program alone waits for nobody.
"""

import triton
import triton.language as tl

_POLL: tl.constexpr = tl.constexpr("""{
    .reg .pred p;
    .reg .b32 thread;
    .reg .b64 count;
    mov.b32 $0, 0;
    mov.u32 thread, %tid.x;
    setp.ne.u32 p, thread, 0;
    @p bra DONE;
POLL:
    ld.acquire.gpu.global.s64 count, [$1];
    setp.lt.s64 p, count, $2;
    @p bra POLL;
DONE:
}""")
_PREFETCH: tl.constexpr = tl.constexpr("prefetch.global.L2 [$1]; mov.b32 $0, 0;")


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
    """Wait until the counter reaches `goal`, and see what the programs had written before."""
    if PROGRAMS > 1:
        tl.inline_asm_elementwise(_POLL, "=r,l,l", [arrivals, goal], dtype=tl.int32, is_pure=False, pack=1)
        tl.debug_barrier()  # one thread waits for the programs, the others for that thread


@triton.jit
def prefetch(pointers):
    """Start to bring the cache lines of these addresses into the second-level cache."""
    tl.inline_asm_elementwise(_PREFETCH, "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1)
