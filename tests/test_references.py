"""Code, tests and pages refer to sections and files that exist, and the map of docs/ARCHITECTURE.md has every file."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (".github", "benchmarks", "checkpoints", "clients", "deploy", "docs", "engine", "experiments", "model",
           "server", "terminal", "tests", "thoughtbubbles", "training")  # fmt: skip
SUFFIXES = {".js", ".md", ".py", ".toml", ".yaml", ".yml"}
SOURCES = sorted(
    path
    for path in [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    if path.suffix in SUFFIXES
    and path.is_file()
    and path != Path(__file__)
    and "results" not in path.parts
    and path.name != "mkdocs.yml"  # its paths are the site's, which mkdocs checks
)
NAMES = {path.name for path in SOURCES}
ELSEWHERE = {"peS2o.py", "follow.py", "model.py", "server.py", "training.py"}
"""Files of other projects and of users, which pages and comments may name."""

SPEC = re.compile(r'SPEC\.md, ("[^"]+"(?:(?:, | and |, and )"[^"]+")*)')
API = re.compile(r"API\.md (§\d(?:(?:, | and | to )§\d)*)")
PATH = re.compile(rf"(?<![\w./-])(?<!\]\()((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*\w\.(?:md|py|toml|ya?ml))\b")
NAME = re.compile(r"`([\w-]+\.(?:md|py))`|(?<![\w./-])([A-Z_]{3,}\.md)\b")


def headings(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


SECTIONS = headings("SPEC.md")
PARAGRAPHS = {heading.split()[0] for heading in headings("API.md") if heading.startswith("§")}


def dangling(text: str) -> Iterator[str]:
    """Yield what `text` refers to and is not there: sections of SPEC.md and API.md, paths and names of files."""
    text = re.sub(r"\s*\n[#\s]*", " ", text)
    for cited in SPEC.findall(text):
        for name in re.findall(r'"([^"]+)"', cited):
            if not any(re.fullmatch(rf"{re.escape(name)}( \(.+\)|: .+)?", section) for section in SECTIONS):
                yield f'SPEC.md, "{name}"'
    for cited in API.findall(text):
        yield from (f"API.md {each}" for each in re.findall(r"§\d", cited) if each not in PARAGRAPHS)
    yield from (path for path in PATH.findall(text) if not (ROOT / path).exists())
    for quoted, page in NAME.findall(text):
        if (name := quoted or page) not in NAMES | ELSEWHERE:
            yield name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_refers_to_what_is_not_there(path: Path) -> None:
    assert not list(dangling(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('(SPEC.md, "Fork" and "Positions")', []),
        ('(SPEC.md, "Fork", step 1)', []),
        ('(SPEC.md, "Fork",\n# "Forking" and "Shapes")', ['SPEC.md, "Forking"']),
        ("(API.md §1 to §3, §5)", []),
        ("(API.md §1 and §9)", ["API.md §9"]),
        ("see docs/NOWHERE.md and docs/SPEC.md", ["docs/NOWHERE.md"]),
        ("`server/app.py` and `engine/nothing.py`", ["engine/nothing.py"]),
        ("`nothing_like_it.py` beside `lifecycle.py`", ["nothing_like_it.py"]),
        ("CHANGELOG.md, MISSING.md", ["MISSING.md"]),
    ],
)
def test_a_dangling_reference_is_seen(text: str, found: list[str]) -> None:
    assert list(dangling(text)) == found


def test_the_map_is_up_to_date() -> None:
    """If it is not, run `python docs/file_map.py`."""
    command = [sys.executable, "docs/file_map.py", "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert check.returncode == 0, f"run `python docs/file_map.py`:\n{check.stdout}{check.stderr}"


def test_the_map_has_every_file_of_a_folder_by_name(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("file_map", ROOT / "docs" / "file_map.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "engine" / "cuda").mkdir(parents=True)
    for name, docstring in {"__init__": "Own.", "b": "Second.\n\nMore.", "a": "First.", "cuda/c": "Third."}.items():
        (tmp_path / "engine" / f"{name}.py").write_text(f'"""{docstring}"""')
    lines = [" ".join(line.split()) for line in module.file_map(tmp_path)]
    assert lines == ["", "engine/ Own.", "a.py First.", "b.py Second.", "", "engine/cuda/", "c.py Third."]
    (tmp_path / "engine" / "d.py").write_text("x = 1")
    with pytest.raises(ValueError, match="no docstring"):
        list(module.file_map(tmp_path))


PAPER = (ROOT / "docs" / "PAPER_TO_CODE.md").read_text(encoding="utf-8")
NAMED = [
    (path, name)
    for path, names in re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", PAPER)
    for name in re.findall(r"`(\w+)`", names)
]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: value)
def test_the_paper_leads_to_code_that_exists(path: str, name: str) -> None:
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    assert name in {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_every_file_of_the_page_is_checked() -> None:
    assert {path for path, _ in NAMED} == set(re.findall(r"`([\w/]+\.py)`", PAPER))
