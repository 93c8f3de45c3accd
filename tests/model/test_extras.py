"""The command that a message names to install an extra is true where it is printed."""

import re
import tomllib
from pathlib import Path

import pytest

from thoughtbubbles.model import extras
from thoughtbubbles.model.extras import client_install_command, install_command

ROOT = Path(__file__).parents[2]
FLOORS = ("model", "engine", "server", "terminal", "training")


def test_a_checkout_installs_from_its_folder() -> None:
    assert install_command("otel") == f"pip install --editable '{ROOT}[otel]'"
    assert client_install_command() == f"pip install --editable {ROOT}/clients/python"


def test_an_installation_installs_from_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "CHECKOUT", tmp_path)
    assert install_command("otel") == "pip install 'thoughtbubbles[otel]'"
    assert client_install_command() == "pip install thoughtbubbles-client"


def test_every_extra_that_the_code_names_exists() -> None:
    sources = [path.read_text(encoding="utf-8") for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
    named = {extra for source in sources for extra in re.findall(r"""install_command\(["'](\w+)["']\)""", source)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"otel", "plots"} <= named <= set(project["optional-dependencies"])


def test_no_other_code_names_the_registry() -> None:
    sources = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py") if path.name != "extras.py"]
    assert not [path for path in sources if "pip install 'thoughtbubbles" in path.read_text(encoding="utf-8")]
