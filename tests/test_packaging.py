"""What an installation gets: pinned versions that fit the declared ranges; test_wheel.py has what is ours."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


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
