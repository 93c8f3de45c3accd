"""The version of this project, and what it computes with."""

import torch

from thoughtbubbles.model import segments_backend
from thoughtbubbles.server.package_version import package_version

VERSION = package_version()


def fingerprint(weights_version: str) -> str:
    """Return the `system_fingerprint` of answers that these weights computed."""
    return f"thoughtbubbles-{VERSION}-{weights_version}"


def build_info(device: str, executor: str) -> dict[str, str]:
    """Return versions, device and executor, and the library that sums over a token's streams on `device`."""
    backend = segments_backend(device)
    return {
        "version": VERSION,
        "torch": torch.__version__,
        "device": device,
        "executor": executor,
        "segments_backend": backend,
    }
