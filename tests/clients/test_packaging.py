"""What an installation of the client gets, which knows nothing of the rest of the repository."""

import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import thoughtbubbles_client

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build from a copy, because a build writes into the source folder."""
    source, out = tmp_path_factory.mktemp("source") / "python", tmp_path_factory.mktemp("wheel")
    shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, out], cwd=source, check=True, capture_output=True)
    (path,) = out.iterdir()
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package = CLIENT / "thoughtbubbles_client"
    files = {str(path.relative_to(CLIENT)) for path in package.rglob("*") if path.suffix == ".py"}
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == files | {"thoughtbubbles_client/py.typed"}


def test_httpx_is_all_it_needs(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["version"] == thoughtbubbles_client.__version__
    (requirement,) = (Requirement(line) for line in metadata.get_all("requires-dist") or [])
    assert requirement.name == "httpx"
    (pinned,) = re.findall(r"^httpx==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert requirement.specifier.contains(pinned)


def test_every_module_imports_httpx_and_the_standard_library_alone() -> None:
    script = """
import pkgutil, sys
import httpx
before = set(sys.modules)
import thoughtbubbles_client
for module in pkgutil.walk_packages(thoughtbubbles_client.__path__, "thoughtbubbles_client."):
    __import__(module.name)
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(tops - sys.stdlib_module_names))
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=CLIENT, capture_output=True, check=True, text=True)
    assert ran.stdout.split() == ["thoughtbubbles_client"]


def test_the_version_is_the_servers() -> None:
    """They are released together."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert thoughtbubbles_client.__version__ == project["version"]


def test_the_public_names_are_these() -> None:
    """The surface others build on; a change here is a change for them."""
    errors = {name for name in thoughtbubbles_client.__all__ if name.endswith("Error")}
    assert set(thoughtbubbles_client.__all__) - errors == {
        "AsyncClient", "AsyncCompletionStream", "ChatOptions", "Choice", "Client", "Completion", "CompletionOptions",
        "CompletionStream", "ForkBias", "LoadedWeights", "Message", "Model", "Prompt", "RetryPolicy", "Token", "Usage",
        "__version__",
    }  # fmt: skip
    assert all(hasattr(thoughtbubbles_client, name) for name in thoughtbubbles_client.__all__)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name.removeprefix("a") if name == "aclose" else name for name in vars(kind) if not name.startswith("_")}

    assert methods(thoughtbubbles_client.Client) == methods(thoughtbubbles_client.AsyncClient)
