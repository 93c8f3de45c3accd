"""Set how many threads torch computes with on a CPU."""

import torch

MAX_THREADS = 1024
"""OpenMP ends the process when it is given too many."""
TORCH_OWN = torch.get_num_threads()
"""Torch's own default, read before anything changes it."""


def set_threads(threads: int | None = None) -> None:
    """Let torch compute with `threads` threads; None: one fewer than torch's default, and at least one.

    All threads of an operation wait for the slowest. If every core computes, any other work (the event loop, another
    process) slows one thread and so the whole step: on two busy cores, decode fell to a tenth. One idle core prevents
    that. It costs a single request next to nothing, because decode is bound by memory bandwidth.
    Raises `ValueError` below 1 and above `MAX_THREADS`.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads must be from 1 to {MAX_THREADS}, not {threads}")
    torch.set_num_threads(threads or max(1, TORCH_OWN - 1))
