"""A real Chromium before the playground: what tests of the page work with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Locator, Page

WATCH_POLICY = "addEventListener('securitypolicyviolation', (event) => console.error(event.violatedDirective));"
ASKED = {"echo": True, "logprobs": 20, "return_fork_counts": True}
"""What the page asks besides the form's settings, as far as it can be seen in the answer."""
ENDLESS = {"prompt": "la la la la la la la la la la la la", "max_tokens": 900, "temperature": 0}
"""Settings that the shipped checkpoint goes on with to the last token, however its numbers are rounded."""


@dataclass
class Playground:
    """The page in a browser."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """What the console said of errors, breaches of the policy among them."""

    def __post_init__(self) -> None:
        self.page.add_init_script(WATCH_POLICY)
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def set(self, **settings: object) -> None:
        """Fill in fields of the form."""
        for name, value in settings.items():
            self.page.fill(f"#{name}", str(value))

    def complete(self, **settings: object) -> None:
        """Fill in the form, send it, and wait for the end."""
        self.set(**settings)
        self.page.click("text=Complete")
        self.wait_for("Done")

    def wait_for(self, status: str) -> None:
        """Wait until the status begins with this."""
        self.page.locator("#status", has_text=status).wait_for(timeout=30_000)

    @property
    def tokens(self) -> Locator:
        """The tokens of all answers."""
        return self.page.locator(".token")

    def answer(self, place: int = 0) -> Locator:
        """Return an answer: the first, or the second, beside it."""
        return self.page.locator(".answer").nth(place)

    def text(self, place: int = 0) -> str:
        """An answer's text, prompt and completion."""
        return self.answer(place).locator(".text").text_content() or ""

    def depths(self, place: int = 0) -> list[str]:
        """How deeply each token of an answer is tinted."""
        script = "(all) => all.map((token) => token.style.getPropertyValue('--depth'))"
        depths: list[str] = self.answer(place).locator(".token").evaluate_all(script)
        return depths

    def bars(self, place: int = 0) -> list[int]:
        """How high each bar of an answer's chart is, in streams."""
        script = "(all) => all.map((bar) => bar.height.baseVal.value)"
        heights: list[int] = self.answer(place).locator("rect").evaluate_all(script)
        return heights


def box(locator: Locator) -> FloatRect:
    """Where on the page something is that can be seen."""
    found = locator.bounding_box()
    assert found is not None
    return found


Visit = Callable[..., Playground]


def depth(streams: int, most: int = 8) -> str:
    """How deeply a token with so many streams is to be tinted, of at most so many."""
    return f"{math.log2(streams) / math.log2(most):.2f}"


def told(url: str, **body: object) -> dict[str, Any]:
    """Return the server's unstreamed answer to the page's request."""
    response = httpx.post(f"{url}/v1/completions", json={**ASKED, **body}, timeout=60)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice
