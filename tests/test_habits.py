"""The files around the code agree with it: workflow, hooks, templates, make targets and versions."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import thoughtbubbles_client

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_workflow_starts_at_the_oldest_python_and_torch_that_are_admitted() -> None:
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={matrix['python'][0]}")
    (torch,) = (each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "torch")
    oldest, newest = matrix["torch"]
    assert torch.specifier == SpecifierSet(newest)
    assert oldest == f"=={newest.removeprefix('>=')}.*"


def test_the_workflow_installs_the_triton_that_the_tests_declare() -> None:
    (declared,) = (each for each in PROJECT["optional-dependencies"]["test"] if each.startswith("triton"))
    steps = " ".join(step.get("run", "") for step in WORKFLOW["jobs"]["test"]["steps"])
    assert f"'{declared.split(';')[0].strip()}'" in steps


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", ".github/workflows/test.yml", "README.md"])
def test_every_make_target_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|run: |^)make (?:PYTHON=\S+ )?([a-z][\w-]*)", text, re.MULTILINE))
    assert named
    assert named <= targets()


def test_hooks_are_the_tools_of_make_lint() -> None:
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in HOOKS}
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    assert tools == set(re.findall(r"\$\(BIN\)/(\w+)", lint)) == {"ruff", "codespell", "mypy"}
    assert tools <= {Requirement(each).name for each in PROJECT["optional-dependencies"]["test"]}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_issue_templates_are_forms(template: Path) -> None:
    form = yaml.safe_load(template.read_text(encoding="utf-8"))
    if template.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
    assert len({part["id"] for part in form["body"]}) == len(form["body"])


def test_server_and_client_are_released_together() -> None:
    assert thoughtbubbles_client.__version__ == PROJECT["version"]
