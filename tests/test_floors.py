"""The floors of the project: deploy → server → engine → model ← training. An import against an arrow fails here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {  # which of ours a floor may import, itself apart
    "model": set[str](),
    "engine": {"model"},
    "server": {"engine", "model"},
    "training": {"model"},
    "deploy": {"server"},
    "benchmarks": {"deploy", "server", "engine", "model", "training"},  # measure any, and nothing needs them
    "clients": {"thoughtbubbles_client"},  # a distribution of its own, which lies in there
}
OURS = {*BELOW, "thoughtbubbles_client", "thoughtbubbles"}
BY_PUBLIC_NAMES = {"server"}  # floors that see of the others what their __init__.py says, and no deeper


def imported_modules(source: str) -> Iterator[str]:
    """Every absolute module name imported anywhere in `source`, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if is_module(node.module, alias.name))


def is_module(package: str, name: str) -> bool:
    """`from engine import fork_cache` reaches into the engine just as `import engine.fork_cache` does."""
    path = ROOT.joinpath(*package.split("."), name)
    return path.is_dir() or path.with_suffix(".py").is_file()


def violations(floor: str, source: str) -> list[str]:
    """The modules of ours that `source`, a file of `floor`, imports and may not."""
    foreign = [m for m in imported_modules(source) if (top := m.split(".")[0]) in OURS and top != floor]
    return [m for m in foreign if m.split(".")[0] not in BELOW[floor] or ("." in m and floor in BY_PUBLIC_NAMES)]


def files(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", BELOW)
def test_imports_follow_the_arrows(floor: str) -> None:
    assert files(floor)
    found = {str(path.relative_to(ROOT)): violations(floor, path.read_text(encoding="utf-8")) for path in files(floor)}
    assert not {path: modules for path, modules in found.items() if modules}


@pytest.mark.parametrize(
    ("floor", "source", "found"),
    [
        ("model", "import engine", ["engine"]),
        ("model", "def f():\n    from training.config import X", ["training.config"]),
        ("engine", "from model.tokenizer import Tokenizer", []),
        ("engine", "import server.app as app", ["server.app"]),
        ("server", "from engine import Engine\nfrom model import load_checkpoint", []),
        ("server", "from engine.request import Request", ["engine.request"]),
        ("server", "from model import segments", ["model.segments"]),
        ("training", "from . import config\nimport torch", []),
        ("training", "from engine import Engine", ["engine"]),
        ("clients", "import thoughtbubbles", ["thoughtbubbles"]),
        ("clients", "from thoughtbubbles_client.sse import Event", []),
        ("clients", "import model", ["model"]),
        ("server", "import thoughtbubbles_client", ["thoughtbubbles_client"]),
        ("server", "from deploy.replicas import replica", ["deploy.replicas", "deploy.replicas.replica"]),
        ("deploy", "from server.settings import ServerSettings", []),
        ("deploy", "from engine import Engine", ["engine"]),
        ("engine", "from benchmarks.header import header", ["benchmarks.header"]),
    ],
)
def test_an_arrow_that_is_not_drawn_is_seen(floor: str, source: str, found: list[str]) -> None:
    assert violations(floor, source) == found
