"""The page at / and its files: the server's own, whole, and under a policy that lets in nothing else."""

import re

import pytest

from tests.server.harness import Serve
from thoughtbubbles.server.routes.playground import FILES, FOLDER

SVG = "http://www.w3.org/2000/svg"
"""The name of a namespace: nobody fetches it."""


@pytest.mark.parametrize("path", FILES)
def test_files_are_served_under_the_policy(path: str, serve: Serve) -> None:
    with serve() as server:
        answer = server.client.get(path)
    assert answer.status_code == 200
    assert answer.text == (FOLDER / FILES[path]).read_text()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_the_page_asks_for_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    page = (FOLDER / "index.html").read_text()
    scripts = "".join(file.read_text() for file in FOLDER.glob("*.js"))
    linked = re.findall(r'(?:src|href)="([^"]+)"', page)
    imported = [f"playground/{name}" for name in re.findall(r' from "\./([^"]+)"', scripts)]
    assert {f"/{path}" for path in linked + imported} == set(FILES) - {"/"}, "no file is missing, and none is idle"
    assert "style=" not in page
    assert not re.search(r"\son\w+=", page)
    assert not re.search(r"https?:", page + scripts.replace(SVG, ""))
    assert "url(" not in "".join(file.read_text() for file in FOLDER.glob("*.css"))


@pytest.mark.parametrize("word", ["innerHTML", "outerHTML", "insertAdjacentHTML", "eval", "Function("])
def test_no_script_makes_markup_or_code_of_text(word: str) -> None:
    assert not [file.name for file in FOLDER.glob("*.js") if word in file.read_text()]
