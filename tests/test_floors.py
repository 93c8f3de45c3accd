"""The floors: deploy → server → engine → model ← training, and terminal → engine. An import against an arrow fails."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACE = "thoughtbubbles"  # the package that the installed floors are imported from
INSTALLED = ("model", "engine", "server", "terminal", "training")
BELOW = {  # which of ours a floor may import, itself apart
    "model": set[str](),
    "engine": {"model"},
    "server": {"engine", "model"},
    "terminal": {"engine", "model"},
    "training": {"model"},
    "deploy": {"server"},
    "benchmarks": {"deploy", "server", "engine", "model", "terminal", "training"},  # measure any; nothing needs them
    "experiments": {"benchmarks", "model", "training"},
    "docs": {"benchmarks", "model", "terminal"},  # scripts that draw figures
    "clients": {"thoughtbubbles_client"},  # a distribution of its own, which lies in there
}
OURS = {*BELOW, "thoughtbubbles_client", FACE}
WINGS = {  # which wings of its floor a wing may import, itself apart; a floor's flat files may lie above or below them
    "engine": {
        "cache": set[str](),
        "structured": set[str](),
        "portable": {"cache"},
        "revising": {"cache", "portable"},
        "cuda": {"cache", "portable"},
        "native": {"cache", "portable"},
    },
    "server": {
        "bridge": set[str](),
        "observe": {"bridge"},
        "protocol": {"bridge"},
        "http": {"bridge", "observe", "protocol"},
        "routes": {"bridge", "http", "observe", "protocol"},
        "processes": {"bridge", "observe"},
        "batch": {"bridge", "protocol"},
    },
    "model": {
        "files": set[str](),
        "text": {"files"},
        "checkpoint": {"files", "text"},
        "huggingface": {"checkpoint", "files", "text"},
    },
    "training": {
        "kernels": set[str](),
        "data": set[str](),
        "tasks": {"data"},
        "analysis": set[str](),
    },
}
FLAT = {  # floor: which wings its flat files may import, "" those that are not named
    "engine": {
        "": {"cache", "structured"},
        "device": {"cache", "portable", "revising", "cuda", "native"},  # makes the executor
        "executor": {"portable"},  # for the tally in the protocol
    },
}
BY_PUBLIC_NAMES = {"server": {"engine", "model"}, "terminal": {"engine"}}  # floor: those it sees by __init__.py alone


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
        return top not in BELOW[floor] or bool(inside and top in BY_PUBLIC_NAMES.get(floor, ()))

    return [module for module in imported_modules(source) if forbidden(module)]


def files(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", BELOW)
def test_imports_follow_the_arrows(floor: str) -> None:
    assert files(floor)
    found = {str(path.relative_to(ROOT)): violations(floor, path.read_text(encoding="utf-8")) for path in files(floor)}
    assert not {path: modules for path, modules in found.items() if modules}


def room(floor: str, module: str) -> str | None:
    """The wing of a floor that a module lies in, or the flat file; None where it is neither."""
    top, _, inside = place(module).partition(".")
    return inside.split(".")[0] if top == floor and inside else None


def rooms(floor: str) -> dict[str, set[str]]:
    """Which rooms of its floor each room imports: a wing is one room, and so is each file that lies in none."""
    found: dict[str, set[str]] = {}
    for path in files(floor):
        parts = path.relative_to(ROOT / floor).with_suffix("").parts
        if parts != ("__init__",):
            seen = {room(floor, module) for module in imported_modules(path.read_text(encoding="utf-8"))}
            found.setdefault(parts[0], set()).update(each for each in seen if each and each != parts[0])
    return found


@pytest.mark.parametrize("floor", WINGS)
def test_wings_import_no_wing_above_them(floor: str) -> None:
    wings = WINGS[floor]
    found = {wing: rooms(floor)[wing] & set(wings) - allowed for wing, allowed in wings.items()}
    assert not {wing: above for wing, above in found.items() if above}


@pytest.mark.parametrize("floor", FLAT)
def test_flat_files_import_no_wing_that_they_need_not_know(floor: str) -> None:
    """In the engine the device alone knows how a plan is computed; the scheduler does not."""
    wings, allowed = set(WINGS[floor]), FLAT[floor]
    flat = {name: seen & wings for name, seen in rooms(floor).items() if name not in wings}
    found = {name: seen - allowed.get(name, allowed[""]) for name, seen in flat.items()}
    assert not {name: known for name, known in found.items() if known}


@pytest.mark.parametrize("floor", WINGS)
def test_rooms_import_each_other_in_no_circle(floor: str) -> None:
    tuple(TopologicalSorter(rooms(floor)).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("folder", ["tests", FACE])
def test_nothing_is_imported_by_the_name_of_its_folder(folder: str) -> None:
    """The other floors are tested above."""
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
        ("engine", "from thoughtbubbles.model.text.tokenizer import Tokenizer", []),
        ("engine", "from thoughtbubbles.engine import Engine", []),
        ("engine", "import thoughtbubbles.server.app as app", ["thoughtbubbles.server.app"]),
        ("engine", "from model import ModelConfig", ["model"]),
        ("server", "from thoughtbubbles.engine import Engine\nfrom thoughtbubbles.model import load_checkpoint", []),
        ("server", "from thoughtbubbles.server import app", []),
        ("server", "from thoughtbubbles.engine.request import Request", ["thoughtbubbles.engine.request"]),
        ("server", "from thoughtbubbles.model import segments", ["thoughtbubbles.model.segments"]),
        ("server", "import engine", ["engine"]),
        ("terminal", "from thoughtbubbles.engine import Engine\nfrom thoughtbubbles.model import Tokenizer", []),
        ("terminal", "from thoughtbubbles.engine.request import Request", ["thoughtbubbles.engine.request"]),
        ("terminal", "from thoughtbubbles.server import app", ["thoughtbubbles.server", "thoughtbubbles.server.app"]),
        (
            "engine",
            "from thoughtbubbles.terminal import session",
            ["thoughtbubbles.terminal", "thoughtbubbles.terminal.session"],
        ),
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
