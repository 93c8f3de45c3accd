"""What is running: this project's version and what it computes with."""

import torch

from thoughtbubbles.model import segments_backend
from thoughtbubbles.server.package_version import package_version

VERSION = package_version()


def build_info(device: str, executor: str) -> dict[str, str]:
    """Version, torch, what computes on `device`, and what sums over a token's streams: torch-scatter or torch."""
    backend = segments_backend(device)
    return {
        "version": VERSION,
        "torch": torch.__version__,
        "device": device,
        "executor": executor,
        "segments_backend": backend,
    }
