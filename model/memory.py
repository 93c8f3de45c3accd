"""Refuse what does not fit into memory with a reason, instead of a traceback or the system's OOM killer."""

import os

import torch


def require_memory(needed: int, what: str) -> None:
    """Raise `ValueError` if this machine has less memory than the `needed` bytes of `what`."""
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > has:
        raise ValueError(f"{what} needs {needed:,} bytes of memory, and this machine has {has:,}")


def lack_of_memory(error: BaseException) -> str | None:
    """Return one line that says memory ran out, or None if `error` has another cause."""
    message = str(error).partition("\n")[0].strip()
    lacking = "can't allocate memory" in message or "out of memory" in message.lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and lacking):
        return f"not enough memory: {message or 'an allocation failed'}"
    return None
