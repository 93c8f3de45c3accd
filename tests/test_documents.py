"""The pages name commands, files and results that are there."""

import re
import shlex
from pathlib import Path

import pytest

import thoughtbubbles

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", ".github", "checkpoints", "clients")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.*"))
NAMES = "|".join(thoughtbubbles.COMMANDS)
COMMAND = re.compile(
    rf"(?:^ *|`)(?:\.venv/bin/)?(?:thoughtbubbles|python -m thoughtbubbles.training) ((?:{NAMES}) [^`\n]+)",
    re.MULTILINE,
)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands() -> list[str]:
    return sorted({line for page in PAGES for line in COMMAND.findall(read(page)) if "--help" not in line})


@pytest.mark.parametrize("line", commands())
def test_every_command_that_a_page_shows_is_understood(line: str) -> None:
    words = shlex.split(line.replace(" SEED", " 0"), comments=True)
    assert thoughtbubbles._parser(words[0]).parse_args(words).command == words[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)|src(?:set)?=\"([^\"]+)\"", read(page))
    for file, anchor, source in targets:
        if file.startswith("http"):
            continue
        target = (page.parent / (file or source)) if file or source else page
        assert target.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(target), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor


def today(command: str) -> str:
    """The command of a result that was made before its file was moved."""
    moved = dict(re.findall(r"^\| `([\w-]+)` \| `([\w. -]+)` \|$", read(ROOT / "docs" / "REPRODUCE.md"), re.MULTILINE))
    start, module, rest = re.fullmatch(r"(python -m )benchmarks\.(\w+)(.*)", command).groups()
    return f"{start}{moved[module]}{rest}"


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.name)
def test_every_result_can_be_reproduced(result: Path) -> None:
    told = read(ROOT / "docs" / "REPRODUCE.md")
    assert f"](../benchmarks/results/{result.name})" in told
    for command in re.findall(r"^# ((?:python -m benchmarks\.|thoughtbubbles ).+)$", read(result), re.MULTILINE):
        assert f"`{command}`" in told or f"`{today(command)}`" in told
