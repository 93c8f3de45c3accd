"""Add a barrier that torch's compiler omits from its Triton kernels.

Such a kernel processes a row in several loops, and a loop may load what an earlier one stored. If the two loops
distribute the row differently over the threads, a thread can load a value that another thread has not stored yet. The
results are then wrong and vary from run to run, without any error
(github.com/pytorch/pytorch/issues/190517; in torch 2.11 and 2.13).
"""

import inspect
import warnings
from typing import Any

import torch

BARRIER = "tl.debug_barrier()"


def guard_read_backs() -> None:
    """Make kernels that this process compiles from now on wait for their stores before they load the values again.

    Does nothing if torch already does so. Warns if torch's compiler differs from the one this was written for.
    """
    try:
        from torch._inductor.codegen.common import CSE  # noqa: PLC0415 - takes seconds, needed for compiling only
        from torch._inductor.codegen.triton import TritonKernel  # noqa: PLC0415

        load: Any = TritonKernel.load
        if BARRIER in inspect.getsource(load) or hasattr(load, "guarded"):
            return
        known = hasattr(CSE(), "invalidated_stores") and "self.body" in inspect.getsource(TritonKernel.codegen_body)
    except (ImportError, AttributeError, TypeError, OSError):
        known = False
    if not known:
        warnings.warn("torch's compiler has changed: its kernels may load values before they are stored", stacklevel=2)
        return

    def guarded_load(self: Any, name: str, index: Any) -> Any:  # noqa: ANN401 - types of the compiler
        if name in self.cse.invalidated_stores:  # stored by an earlier loop of the body
            self.body.writeline(BARRIER)
        return load(self, name, index)

    guarded_load.guarded = True  # type: ignore[attr-defined]
    TritonKernel.load = guarded_load  # type: ignore[method-assign]
    torch.compiler.config.cache_key_tag += "guarded read-backs"  # cached kernels may lack the barrier
