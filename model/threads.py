"""How many threads torch computes with on a CPU."""

import torch

MAX_THREADS = 1024
"""Beyond some number of threads OpenMP ends the process."""
TORCH_OWN = torch.get_num_threads()
"""What torch would take, read before anyone changes it."""


def set_threads(threads: int | None = None) -> None:
    """Compute with `threads` threads; None: one fewer than torch would take, and at least one.

    With every core computing, the threads of a step wait at each operation for the one that anything else displaced,
    an event loop or a neighbour: measured on two busy cores, decoding then fell to a tenth. A core left over prevents
    that, and costs a single request next to nothing, since its decode waits for memory.
    `ValueError` below 1 and above `MAX_THREADS`.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads must be from 1 to {MAX_THREADS}, not {threads}")
    torch.set_num_threads(threads or max(1, TORCH_OWN - 1))
