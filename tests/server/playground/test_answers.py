"""The playground in a real browser, before the checkpoint that ships."""

import json
import math
import re
from itertools import product
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.server.harness import eventually
from tests.server.playground.harness import ASKED, ENDLESS, Playground, Visit, depth, told
from thoughtbubbles.server.protocol.requests import Json

if TYPE_CHECKING:
    from playwright.sync_api import Request

SETTINGS: Json = {"prompt": "The river 東京 is", "max_tokens": 24, "temperature": 0.6, "seed": 8}


@pytest.fixture
def playground(shipped_url: str, visit: Visit) -> Playground:
    return visit(shipped_url)


def test_an_answer_is_what_the_server_tells(playground: Playground, shipped_url: str) -> None:
    playground.complete(**SETTINGS)
    expected = told(shipped_url, **SETTINGS, fork_ratio=2)
    counts = expected["fork_counts"]
    assert len(set(counts)) > 2, "an example with bubbles of several sizes"
    assert playground.text() == expected["text"]
    assert playground.depths() == list(map(depth, counts))
    assert playground.bars() == counts
    figures = playground.answer().locator("dl").inner_text()
    prompt = expected["logprobs"]["token_logprobs"][1 : len(counts) - SETTINGS["max_tokens"]]
    assert f"{sum(counts) / len(counts):.2f}" in figures
    assert f"{-sum(prompt) / len(prompt) / math.log(2):.2f} bits a token" in figures


def test_the_model_is_told(playground: Playground) -> None:
    playground.page.locator("#model", has_text="thoughtbubbles-11m · 11,578,624 parameters").wait_for()
    assert playground.page.locator("#scale").inner_text().split() == ["1", "2", "4", "8"]


def test_stop(playground: Playground, shipped_url: str) -> None:
    def stopped() -> float:
        metrics = httpx.get(f"{shipped_url}/metrics").text
        (told,) = re.findall(r'finished_total\{finish_reason="abort"\} (\S+)', metrics)
        return float(told)

    before = stopped()
    stop = playground.page.locator("#stop")
    assert stop.is_disabled()
    playground.set(**ENDLESS)
    playground.page.click("text=Complete")
    playground.tokens.nth(20).wait_for()
    assert playground.page.locator(".text").get_attribute("aria-busy") == "true"
    stop.click()
    playground.wait_for("Stopped.")
    assert 20 < playground.tokens.count() < 900
    assert len(playground.bars()) == playground.tokens.count()
    assert playground.page.locator(".text").get_attribute("aria-busy") == "false"
    assert stop.is_disabled()
    eventually(lambda: stopped() == before + 1)
    playground.complete(**SETTINGS)


def entropy(logprobs: Json) -> float:
    """Return the entropy in bits of the listed tokens, and of all others as one."""
    told = [math.exp(each) for each in logprobs.values()]
    return -sum(p * math.log2(p) for p in [*told, 1 - sum(told)])


def test_a_token_under_the_pointer(playground: Playground, shipped_url: str) -> None:
    playground.complete(**SETTINGS)
    expected = told(shipped_url, **SETTINGS, fork_ratio=2)
    card = playground.page.locator("#card")
    place = expected["fork_counts"].index(max(expected["fork_counts"]))
    assert not card.is_visible()
    playground.tokens.nth(place).hover()
    top = expected["logprobs"]["top_logprobs"][place]
    shown = card.inner_text()
    assert f"{expected['fork_counts'][place]} streams" in shown
    assert f"Entropy before it: at least {entropy(top):.2f} bits from the {len(top)} likeliest" in " ".join(
        shown.split()
    )
    chosen = expected["logprobs"]["tokens"][place]
    best = sorted(top, key=top.get, reverse=True)[:5]
    listed = [
        name.replace("·", " ").replace("↵", "\n") for name in card.locator("li span:first-child").all_inner_texts()
    ]
    assert listed == best + [chosen] * (chosen not in best)
    assert float(card.locator(".chosen span").nth(1).inner_text().rstrip("%")) == pytest.approx(
        100 * math.exp(top[chosen]), rel=0.05
    )
    assert playground.page.locator("rect.pointed").count() == 1
    card.hover()
    playground.page.wait_for_timeout(300)  # longer than the card waits for the pointer
    assert card.is_visible()
    playground.page.hover("h1")
    card.wait_for(state="hidden")


def test_the_first_token_has_nothing_before_it(playground: Playground) -> None:
    playground.complete(**SETTINGS)
    playground.tokens.first.hover()
    assert "nothing stands before it" in playground.page.locator("#card").inner_text()


def test_a_bar_points_at_its_token(playground: Playground) -> None:
    playground.complete(**SETTINGS)
    playground.page.locator("rect").nth(12).hover()
    assert playground.tokens.nth(12).get_attribute("aria-describedby") == "card"
    assert playground.page.locator("#card").is_visible()


def sent(playground: Playground) -> list[Json]:
    """Return the bodies of all completions that the page requests from now on."""
    bodies: list[Json] = []

    def note(request: "Request") -> None:
        if request.post_data:
            bodies.append(json.loads(request.post_data))

    playground.page.on("request", note)
    return bodies


def test_two_ratios_side_by_side_with_the_same_seed(playground: Playground, shipped_url: str) -> None:
    bodies = sent(playground)
    assert playground.page.locator("text=not what forks gain").is_hidden()
    playground.page.check("text=Two ratios side by side")
    assert playground.page.locator("text=not what forks gain").is_visible()
    playground.page.fill("#ratio-2", "8")
    playground.complete(**SETTINGS)
    assert sorted(body.pop("fork_ratio") for body in bodies) == [2, 4]
    assert bodies[0] == bodies[1]
    assert bodies[0].items() >= {**ASKED, **SETTINGS}.items()
    expected = [told(shipped_url, **SETTINGS, fork_ratio=ratio, return_token_ids=True) for ratio in (2, 4)]
    for place, choice in enumerate(expected):
        assert playground.text(place) == choice["text"]
        assert playground.bars(place) == choice["fork_counts"]
    one, other = (choice["token_ids"] for choice in expected)
    agreed = next(place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    assert f"have {agreed} token" in playground.page.inner_text("#status")
    prompt = len(expected[0]["fork_counts"]) - len(one)
    for place in range(2):
        marked = playground.answer(place).locator(".token").nth(prompt + agreed)
        assert "parting" in (marked.get_attribute("class") or "")


def test_the_same_ratio_twice_is_the_same_answer(playground: Playground) -> None:
    playground.page.check("text=Two ratios side by side")
    playground.page.fill("#ratio-2", "4")
    playground.complete(**SETTINGS)
    playground.wait_for("Done: both answers are the same.")
    assert playground.text(0) == playground.text(1)
    assert playground.page.locator(".parting").count() == 0


def test_a_dial_that_is_turned_writes_anew(playground: Playground, shipped_url: str) -> None:
    playground.complete(**SETTINGS)
    before = playground.text()
    playground.page.focus("#ratio-1")
    for _ in range(4):
        playground.page.keyboard.press("ArrowRight")
    playground.page.locator("h2", has_text="Fork ratio 4").wait_for()
    playground.wait_for("Done")
    assert playground.text() == told(shipped_url, **SETTINGS, fork_ratio=4)["text"] != before


def test_a_dial_that_is_turned_before_there_is_an_answer_asks_for_none(playground: Playground) -> None:
    bodies = sent(playground)
    playground.page.fill("#ratio-1", "9")
    assert playground.page.locator("output").first.inner_text() == "5"
    playground.page.wait_for_timeout(500)  # longer than a dial waits for its next turn
    assert bodies == []


def test_where_a_dial_stands(playground: Playground) -> None:
    dial, shown = playground.page.locator("#ratio-1"), playground.page.locator("output").first
    for steps, ratio in [(0, "1"), (1, "1.25"), (4, "2"), (6, "3"), (11, "7"), (12, "8")]:
        dial.fill(str(steps))
        assert shown.inner_text() == ratio
        assert dial.evaluate("(dial) => dial.ariaValueText") == f"{ratio} per token"


def alternatives(playground: Playground, probabilities: list[float], told: int) -> Json:
    """What the page makes of the likeliest of a distribution."""
    likeliest = sorted(probabilities, reverse=True)[:told]
    top = {f"token {rank}": math.log(p) if p else -9999.0 for rank, p in enumerate(likeliest)}
    return playground.page.evaluate(
        "(top) => import('/playground/alternatives.js').then((m) => m.alternatives(top))", top
    )


def test_the_entropy_is_no_more_than_the_whole_distributions(playground: Playground) -> None:
    for sharpness, listed in product((0.0, 1.0, 8.0), (1, 2, 20, 100)):
        weights = [math.exp(-sharpness * rank / 10) for rank in range(100)]
        probabilities = [weight / sum(weights) for weight in weights]
        exact = -sum(p * math.log2(p) for p in probabilities)
        found = alternatives(playground, probabilities, listed)
        assert found["rest"] == pytest.approx(1 - sum(probabilities[:listed]), abs=1e-9)
        assert found["bits"] <= exact + 1e-9
        assert found["bits"] == pytest.approx(exact, abs=1e-9) or listed < 100


def test_a_certain_token_has_no_entropy(playground: Playground) -> None:
    found = alternatives(playground, [1.0, 0.0], 2)
    assert (found["bits"], found["rest"]) == (0, 0)
    assert found["ranked"] == [["token 0", 1], ["token 1", 0]]
