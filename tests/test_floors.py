"""The floors of the project: deploy → server → engine → model ← training. An import against an arrow fails here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACE = "thoughtbubbles"  # the package that model, engine, server and training are imported from
INSTALLED = ("model", "engine", "server", "training")
BELOW = {  # which of ours a floor may import, itself apart
    "model": set[str](),
    "engine": {"model"},
    "server": {"engine", "model"},
    "training": {"model"},
    "deploy": {"server"},
    "benchmarks": {"deploy", "server", "engine", "model", "training"},  # measure any, and nothing needs them
    "experiments": {"benchmarks", "model", "training"},
    "docs": {"benchmarks", "model"},  # scripts that draw figures
    "clients": {"thoughtbubbles_client"},  # a distribution of its own, which lies in there
}
OURS = {*BELOW, "thoughtbubbles_client", FACE}
BY_PUBLIC_NAMES = {"server"}  # floors that see of the others what their __init__.py says, and no deeper


def imported_modules(source: str) -> Iterator[str]:
    """Every absolute module name imported anywhere in `source`, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules = [f"{node.module}.{alias.name}" for alias in node.names if is_module(node.module, alias.name)]
            if node.module != FACE or len(modules) < len(node.names):
                yield node.module
            yield from modules


def is_module(package: str, name: str) -> bool:
    """`from deploy import replicas` reaches into deploy just as `import deploy.replicas` does."""
    path = ROOT.joinpath(*package.split("."), name)
    return path.is_dir() or path.with_suffix(".py").is_file()


def place(module: str) -> str:
    """The module's name without the package that has all that is installed; the face's own where it is the face."""
    return module.removeprefix(f"{FACE}.")


def by_its_folder(module: str) -> bool:
    """Whether a module that is installed is imported by a name that a checkout alone has, a second one."""
    return module.split(".", maxsplit=1)[0] in INSTALLED


def violations(floor: str, source: str) -> list[str]:
    """The modules of ours that `source`, a file of `floor`, imports and may not."""

    def forbidden(module: str) -> bool:
        top, _, inside = place(module).partition(".")
        if by_its_folder(module):
            return True
        if top not in OURS or top == floor:
            return False
        return top not in BELOW[floor] or bool(inside and floor in BY_PUBLIC_NAMES)

    return [module for module in imported_modules(source) if forbidden(module)]


def files(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", BELOW)
def test_imports_follow_the_arrows(floor: str) -> None:
    assert files(floor)
    found = {str(path.relative_to(ROOT)): violations(floor, path.read_text(encoding="utf-8")) for path in files(floor)}
    assert not {path: modules for path, modules in found.items() if modules}


@pytest.mark.parametrize("folder", ["tests", FACE])
def test_nothing_is_imported_by_the_name_of_its_folder(folder: str) -> None:
    """The floors are held to it above."""
    assert files(folder)
    sources = {path: path.read_text(encoding="utf-8") for path in files(folder)}
    found = {path: list(filter(by_its_folder, imported_modules(source))) for path, source in sources.items()}
    assert not {path: modules for path, modules in found.items() if modules}


@pytest.mark.parametrize(
    ("floor", "source", "found"),
    [
        ("model", "import thoughtbubbles.engine", ["thoughtbubbles.engine"]),
        ("model", "from thoughtbubbles import engine", ["thoughtbubbles.engine"]),
        ("model", "def f():\n    from thoughtbubbles.training.config import X", ["thoughtbubbles.training.config"]),
        ("model", "from thoughtbubbles import load", ["thoughtbubbles"]),
        ("model", "from model.config import ModelConfig", ["model.config"]),
        ("engine", "from thoughtbubbles.model.tokenizer import Tokenizer", []),
        ("engine", "from thoughtbubbles.engine import Engine", []),
        ("engine", "import thoughtbubbles.server.app as app", ["thoughtbubbles.server.app"]),
        ("engine", "from model import ModelConfig", ["model"]),
        ("server", "from thoughtbubbles.engine import Engine\nfrom thoughtbubbles.model import load_checkpoint", []),
        ("server", "from thoughtbubbles.server import errors", []),
        ("server", "from thoughtbubbles.engine.request import Request", ["thoughtbubbles.engine.request"]),
        ("server", "from thoughtbubbles.model import segments", ["thoughtbubbles.model.segments"]),
        ("server", "import engine", ["engine"]),
        ("training", "from . import config\nimport torch", []),
        ("training", "from thoughtbubbles.engine import Engine", ["thoughtbubbles.engine"]),
        ("clients", "import thoughtbubbles", ["thoughtbubbles"]),
        ("clients", "from thoughtbubbles_client.sse import Event", []),
        ("clients", "import thoughtbubbles.model", ["thoughtbubbles.model"]),
        ("server", "import thoughtbubbles_client", ["thoughtbubbles_client"]),
        ("server", "from deploy.replicas import replica", ["deploy.replicas", "deploy.replicas.replica"]),
        ("deploy", "from thoughtbubbles.server.settings import ServerSettings", []),
        ("deploy", "from thoughtbubbles.engine import Engine", ["thoughtbubbles.engine"]),
        ("benchmarks", "from server.settings import ServerSettings", ["server.settings"]),
        ("engine", "from benchmarks.header import header", ["benchmarks.header"]),
    ],
)
def test_an_arrow_that_is_not_drawn_is_seen(floor: str, source: str, found: list[str]) -> None:
    assert violations(floor, source) == found
