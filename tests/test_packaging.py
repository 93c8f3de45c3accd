"""What an installation gets: pinned versions that fit the declared ranges, and a wheel with all that is ours alone."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGES = ("model", "engine", "server", "training")


def requirements() -> list[Requirement]:
    """All but Triton, of which each build of torch for CUDA brings the one version that it can use."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values(), PYPROJECT["build-system"]["requires"]]
    return [each for lines in lists for each in map(Requirement, lines) if each.name != "triton"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_each_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_no_pin_excludes_a_build_of_torch() -> None:
    """A pin of 2.13.0+cpu would refuse the CUDA build, and pins of CUDA packages would refuse every other build."""
    assert not [version for version in pins().values() if "+" in version]
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize("version", ["2.9.0", "2.13.0", "2.14.1", "3.0.0"])
def test_torch_2_9_and_newer_are_admitted(version: str) -> None:
    (torch,) = (requirement for requirement in requirements() if requirement.name == "torch")
    assert torch.specifier.contains(version)


def test_changelog_opens_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## \[(.+)\] - ", changelog, re.MULTILINE)
    assert heading
    assert heading[1] == PROJECT["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, because a build writes beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "thoughtbubbles.py"):
        shutil.copy(ROOT / name, source)
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, source / package)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, out], cwd=source, check=True, capture_output=True)
    (path,) = out.iterdir()
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_our_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == tracked | {"thoughtbubbles.py"}


def test_the_wheel_has_the_licence_and_one_command(wheel: zipfile.ZipFile) -> None:
    contents = {
        name.split(".dist-info/")[-1]: wheel.read(name).decode() for name in wheel.namelist() if "dist-info" in name
    }
    assert contents["licenses/LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert contents["entry_points.txt"].split() == ["[console_scripts]", "thoughtbubbles", "=", "thoughtbubbles:main"]
