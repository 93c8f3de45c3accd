"""A real Chromium, and the servers whose page it opens."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.contract.conftest import shipped_url  # noqa: F401 (fixtures are found by their names here)
from tests.server.conftest import (  # noqa: F401
    make_engine,
    make_service,
    serve,
    server,
    shared_server,
)
from tests.server.harness import random_model
from tests.server.playground.harness import Playground, Visit
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Thoughtbubbles:
    """Random, of bytes."""
    return random_model(tokenizer.vocab_size)


@pytest.fixture(scope="module")  # not longer: while Playwright runs, no test can run a loop of its own
def browser() -> "Iterator[Browser]":
    """Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright (in the extra `test`) is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("Chromium (Debian's package chromium) is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Visit]:
    """Open the page of a server. In the end no console may hold an error that the test has not taken out."""
    opened: list[Playground] = []

    def open_page(url: str, **device: object) -> Playground:
        playground = Playground(browser.new_page(**device))
        opened.append(playground)
        playground.page.goto(url)
        return playground

    yield open_page
    for playground in opened:
        playground.page.close()
        assert playground.errors == []
