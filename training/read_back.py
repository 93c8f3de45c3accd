"""A barrier that torch's compiler leaves out of the kernels that it writes for a device.

Such a kernel goes over a row in loops; what one loop stores, a later one may load again. Where the two lay the row out
differently over the threads, a thread loads what another has not stored yet: the numbers are wrong, each time others,
and nothing tells (github.com/pytorch/pytorch/issues/190517; torch 2.11 and 2.13 have it).
"""

import inspect
import warnings
from typing import Any

import torch

BARRIER = "tl.debug_barrier()"


def guard_read_backs() -> None:
    """Have kernels that this process compiles from now on wait for their own stores before they load them again.

    Does nothing where torch does it. Warns where torch's compiler is not as it was when this was written.
    """
    try:
        from torch._inductor.codegen.common import CSE  # noqa: PLC0415 - takes seconds, where nothing may be compiled
        from torch._inductor.codegen.triton import TritonKernel  # noqa: PLC0415

        load: Any = TritonKernel.load
        if BARRIER in inspect.getsource(load) or hasattr(load, "guarded"):
            return
        known = hasattr(CSE(), "invalidated_stores") and "self.body" in inspect.getsource(TritonKernel.codegen_body)
    except (ImportError, AttributeError, TypeError, OSError):
        known = False
    if not known:
        warnings.warn("torch's compiler has changed: its kernels may read what they have not written yet", stacklevel=2)
        return

    def guarded_load(self: Any, name: str, index: Any) -> Any:  # noqa: ANN401 - of the compiler's own types
        if name in self.cse.invalidated_stores:  # stored in a loop that is in the body already
            self.body.writeline(BARRIER)
        return load(self, name, index)

    guarded_load.guarded = True  # type: ignore[attr-defined]
    TritonKernel.load = guarded_load  # type: ignore[method-assign]
    torch.compiler.config.cache_key_tag += "guarded read-backs"  # kernels kept on disk may be without it
