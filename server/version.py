"""The version of this project, and what it computes with."""

import torch

from thoughtbubbles.model import segments_backend
from thoughtbubbles.server.package_version import package_version

VERSION = package_version()


def build_info(device: str) -> dict[str, str]:
    """Return the versions of this project and torch, and which library sums over a token's streams on `device`."""
    backend = segments_backend(device)
    return {"version": VERSION, "torch": torch.__version__, "device": device, "segments_backend": backend}
