"""Which CUDA device is the current one of a thread: it gets what does not name its device."""

from contextlib import AbstractContextManager, nullcontext

import torch


def current_device(device: torch.device) -> AbstractContextManager[None]:
    """Makes a CUDA device the current one of the thread that enters, until it leaves; does nothing for a CPU.

    Launches of Triton, streams, events and graphs go to the current device, which for every new thread is the first.
    May be entered again and again, but not while it is entered.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
