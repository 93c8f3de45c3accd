"""The first lines of every result: machine, date, versions and command."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch


def header() -> str:
    """Return machine, date, versions and command, each line as a comment."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return "\n".join(
        [
            f"# {machine()}",
            f"# {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, torch {torch.__version__}",
            f"# {command}",
        ]
    )


def machine() -> str:
    """Return the accelerator's name, or the processor's and the number of torch's threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"
