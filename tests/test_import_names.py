"""Every module of ours has one name, which begins with `thoughtbubbles` and collides with no other."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from thoughtbubbles.training.data.vocabulary import train_byte_pairs

ROOT = Path(__file__).parents[1]
FLOORS = ("model", "engine", "server", "terminal", "training")
IMPORTS = """
import thoughtbubbles.model, thoughtbubbles.engine, thoughtbubbles.server.app
import thoughtbubbles.terminal.chat, thoughtbubbles.training.__main__
"""
NEEDED_BY_OTHERS = {  # than training, which does with torch, numpy, safetensors, tiktoken and tqdm
    "datasets", "fastapi", "httptools", "httpx", "matplotlib", "opentelemetry", "prometheus_client", "pyarrow",
    "pydantic", "rich", "scipy", "sse_starlette", "starlette", "tokenizers", "uvicorn", "uvloop", "wandb",
}  # fmt: skip
ABSENT = f"""
import sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {NEEDED_BY_OTHERS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent)
"""
EVERY_MODULE = """
import importlib, os, pkgutil, sys
import thoughtbubbles

for module in pkgutil.walk_packages(thoughtbubbles.__path__, "thoughtbubbles."):
    importlib.import_module(module.name)
for name, module in sorted(sys.modules.items()):
    if getattr(module, "__file__", None):
        print(name, os.path.realpath(module.__file__), sep="\\t")
"""


def run(*arguments: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, which finds modules in `cwd` first and then in `path`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment | {"PYTHONPATH": str(path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", [False, True])
def test_importing_works_beside_files_named_as_our_folders(script: bool, tmp_path: Path) -> None:
    for floor in FLOORS:
        (tmp_path / f"{floor}.py").write_text("whose = 'the user'\n")
    whose = "".join(f"import {floor}\nassert {floor}.whose == 'the user'\n" for floor in FLOORS)
    (tmp_path / "script.py").write_text(IMPORTS + whose)
    ran = run(*(["script.py"] if script else ["-c", IMPORTS + whose]), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_has_no_second_name(floor: str) -> None:
    """A checkout has the folders themselves on the path: their modules would be there twice."""
    ran = run("-c", f"import {floor}", cwd=ROOT)
    assert ran.returncode == 1
    assert ran.stderr.endswith(f"ImportError: import thoughtbubbles.{floor} instead of {floor}\n")


def loaded() -> Iterator[tuple[str, Path]]:
    """Each module that is there when all of ours are imported, and the file that it was read from."""
    ran = run("-c", EVERY_MODULE, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.splitlines():
        name, file = line.split("\t")
        yield name, Path(file)


def test_every_module_is_imported_once() -> None:
    modules = list(loaded())
    ours = [(name, file) for name, file in modules if any((ROOT / floor) in file.parents for floor in FLOORS)]
    assert {file for _, file in ours} == {path.resolve() for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    assert len(ours) == len({file for _, file in ours})
    assert {name.split(".")[0] for name, _ in ours} == {"thoughtbubbles"}


@pytest.mark.parametrize(("floor", "absent"), [("server", ""), ("training", ABSENT)])
def test_a_floor_runs_from_a_plain_checkout(floor: str, absent: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(absent)
    ran = run("-m", f"thoughtbubbles.{floor}", "--help", cwd=ROOT, path=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"usage: python -m thoughtbubbles.{floor} ")


def test_learning_a_vocabulary_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="pip install tokenizers"):
        train_byte_pairs(["to be"], 257)


def test_the_face_runs_as_a_module_and_as_a_folder(tmp_path: Path) -> None:
    for arguments, cwd in ((["-m", "thoughtbubbles"], ROOT), ([str(ROOT / "thoughtbubbles")], tmp_path)):
        ran = run(*arguments, "--help", cwd=cwd, path=tmp_path)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith("usage: thoughtbubbles ")
