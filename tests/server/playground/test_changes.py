"""Forks that are changed on the page: both answers, the panel, and the requests behind them."""

import pytest

from tests.server.harness import CONTEXT, Running
from tests.server.playground.harness import Visit, told

SETTINGS = {"prompt": "ab cd ef gh", "max_tokens": 6, "temperature": 0, "seed": 3}


def test_a_forbidden_token_is_beside_the_model_s_own(server: Running, visit: Visit) -> None:
    playground = visit(server.url)
    playground.complete(**SETTINGS)
    playground.tokens.nth(3).hover()
    playground.page.click("#card button")
    assert playground.page.locator("#card").is_hidden()
    assert playground.page.locator("#changes legend").inner_text() == "Forks of c"
    playground.page.check("#changes input[value=never]")
    playground.page.locator(".token.changed").wait_for()
    bias = [{"layer": layer, "position": 3, "select": "never"} for layer in (1, 2)]
    for place, some in enumerate(([], bias)):
        expected = told(server.url, **SETTINGS, fork_bias=some, return_fork_scores=True)
        assert playground.bars(place) == expected["fork_counts"]
        assert playground.text(place) == expected["text"]
    assert playground.bars(1)[3] == 1
    playground.page.click("#changes button")
    playground.answer(1).wait_for(state="detached")
    assert playground.page.locator("#changes").is_hidden()


def test_with_the_keyboard_alone(server: Running, visit: Visit) -> None:
    playground = visit(server.url)
    playground.complete(**SETTINGS)
    playground.tokens.nth(0).focus()
    playground.page.keyboard.press("ArrowRight")
    playground.page.keyboard.press("Enter")
    playground.page.keyboard.press("ArrowRight")
    playground.page.keyboard.press("ArrowRight")
    playground.page.locator(".token.changed").wait_for()
    biases = [{"layer": layer, "position": 1, "select": "always"} for layer in (1, 2)]
    assert playground.bars(1) == told(server.url, **SETTINGS, fork_bias=biases)["fork_counts"]


@pytest.mark.parametrize("mistake", [{"max_tokens": CONTEXT}, {"prompt": "a" * CONTEXT}, "beside"])
@pytest.mark.parametrize("changed", [False, True])
def test_a_refusal_leaves_the_panel(
    server: Running, visit: Visit, mistake: dict[str, object] | str, changed: bool
) -> None:
    """The answer stays, and so does what belongs to its tokens; the same prompt has the changes again."""
    playground = visit(server.url)
    playground.complete(**SETTINGS)
    playground.tokens.nth(3).hover()
    playground.page.click("#card button")
    if changed:
        playground.page.check("#changes input[value=never]")
        playground.page.locator(".token.changed").wait_for()
        playground.wait_for("Done")
    before = playground.answer(int(changed)).inner_text()
    if isinstance(mistake, str):
        playground.set(max_tokens=CONTEXT)
        playground.page.check("#beside")
    else:
        playground.set(**mistake)
        playground.page.click("text=Complete")
    playground.page.locator("#status", has_text="context").wait_for()
    playground.errors.clear()  # what the browser says of 400
    assert playground.page.locator("#changes").is_visible()
    assert playground.page.locator("#changes legend").inner_text() == "Forks of c"
    assert playground.page.locator(".token.changed").count() == changed
    playground.page.uncheck("#beside")
    playground.complete(**SETTINGS)
    assert playground.answer(int(changed)).inner_text() == before
    assert playground.page.locator(".answer").count() == 1 + changed
    assert playground.page.locator("#changes").is_visible()


def test_another_prompt_has_no_changes(server: Running, visit: Visit) -> None:
    playground = visit(server.url)
    playground.complete(**SETTINGS)
    playground.tokens.nth(0).focus()
    playground.page.keyboard.press("Enter")
    playground.page.check("#changes input[value=always]")
    playground.page.locator(".token.changed").wait_for()
    playground.complete(prompt="other")
    assert playground.page.locator(".answer").count() == 1
    assert playground.page.locator("#changes").is_hidden()


def test_two_ratios_have_no_changes(server: Running, visit: Visit) -> None:
    playground = visit(server.url)
    playground.complete(**SETTINGS)
    playground.tokens.nth(0).focus()
    playground.page.keyboard.press("Enter")
    playground.page.check("#changes input[value=never]")
    playground.page.locator(".token.changed").wait_for()
    playground.wait_for("Done")
    playground.page.check("#beside")
    playground.page.locator(".token.changed").wait_for(state="detached")
    playground.wait_for("Done")
    assert playground.page.locator("#changes").is_hidden()
    assert [one.inner_text() for one in playground.page.locator(".answer h2").all()] == ["Fork ratio 2", "Fork ratio 1"]
