"""Memory of this machine: what cannot fit is refused with a reason, not by a traceback or the system's OOM killer."""

import os

import torch


def require_memory(needed: int, what: str) -> None:
    """`ValueError` if this machine has less memory than the `needed` bytes of `what`."""
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > has:
        raise ValueError(f"{what} needs {needed:,} bytes of memory, and this machine has {has:,}")


def lack_of_memory(error: BaseException) -> str | None:
    """Return in one line that memory was lacking; None where `error` says something else."""
    told = str(error).partition("\n")[0].strip()
    lacking = "can't allocate memory" in told or "out of memory" in told.lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and lacking):
        return f"not enough memory: {told or 'an allocation failed'}"
    return None
