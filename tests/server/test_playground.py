"""The page at / and its files: the server's own, whole, and under a policy that lets in nothing else."""

import re

import pytest

from server.playground_routes import FILES, FOLDER
from tests.server.harness import Serve


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
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {f"/{name}" for name in wanted} == set(FILES) - {"/"}
    assert "style=" not in page
    assert not re.search(r"\son\w+=", page)
    assert "http" not in (FOLDER / "playground.js").read_text()
