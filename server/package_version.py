"""The version of this project. Imports nothing slow."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def package_version() -> str:
    """Return the installed version; in a checkout that is not installed, that of `pyproject.toml`."""
    try:
        return version("thoughtbubbles")
    except PackageNotFoundError:
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        return str(project["version"])
