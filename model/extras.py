"""The command that installs what an optional feature needs."""

import shlex
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
CLIENT = "clients/python"


def install_command(extra: str) -> str:
    """Return the shell command that installs an extra: from the checkout that runs, otherwise from a registry."""
    if in_checkout():
        return f"pip install --editable {shlex.quote(f'{CHECKOUT}[{extra}]')}"
    return f"pip install 'thoughtbubbles[{extra}]'"


def client_install_command() -> str:
    """Return the shell command that installs the Python client, a distribution of its own."""
    if in_checkout():
        return f"pip install --editable {shlex.quote(str(CHECKOUT / CLIENT))}"
    return "pip install thoughtbubbles-client"


def in_checkout() -> bool:
    """Return whether this code runs from a checkout: an installed wheel has no `pyproject.toml` and no client."""
    return (CHECKOUT / "pyproject.toml").is_file() and (CHECKOUT / CLIENT).is_dir()
