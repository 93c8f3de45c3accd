"""The playground before a server that refuses, is slow, breaks, or writes what is hard to show."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.harness import CONTEXT, Running, Serve
from tests.server.playground.harness import Playground, Visit, told
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.protocol.completions import Completion

SHORT = {"prompt": "abc", "max_tokens": 20, "temperature": 1}


@pytest.fixture
def playground(server: Running, visit: Visit) -> Playground:
    return visit(server.url)


def expect(playground: Playground, status: int, times: int = 1) -> None:
    """Take out of the console what a browser says of answers with this status."""
    said = [line for line in playground.errors if f"status of {status}" in line]
    assert len(said) == times
    for line in said:
        playground.errors.remove(line)


@pytest.mark.parametrize("seed", range(4))
def test_bytes_that_are_no_text(playground: Playground, server: Running, seed: int) -> None:
    """The tiny model writes any bytes: parts of characters, control characters, quotation marks, markup."""
    settings = {**SHORT, "prompt": "é<b>\n\n東&amp;", "max_tokens": 40, "seed": seed}
    playground.complete(**settings)
    expected = told(server.url, **settings, fork_ratio=2)
    assert playground.text() == expected["text"]
    assert playground.bars() == expected["fork_counts"]
    for place in (len(expected["fork_counts"]) - 1, 1, 5):
        playground.tokens.nth(place).focus()
        assert f"{expected['fork_counts'][place]} stream" in playground.page.locator("#card").inner_text()


def test_no_prompt(playground: Playground) -> None:
    playground.complete(**{**SHORT, "prompt": ""})
    assert playground.text().startswith("<|endoftext|>")


@pytest.mark.parametrize(
    ("field", "settings"), [("max_tokens", {"max_tokens": CONTEXT}), ("prompt", {"prompt": "a" * CONTEXT})]
)
def test_a_mistake_is_told_and_its_field_marked(
    playground: Playground, field: str, settings: dict[str, object]
) -> None:
    playground.set(**SHORT | settings)
    playground.page.click("text=Complete")
    playground.page.locator("#status", has_text="context").wait_for()
    expect(playground, 400)
    assert playground.page.locator("[aria-invalid][aria-errormessage=status]").get_attribute("id") == field
    assert playground.page.locator("#status.wrong").count() == 1
    playground.complete(**SHORT)
    assert playground.page.locator("[aria-invalid], #status.wrong").count() == 0


@pytest.mark.parametrize("ratios", [1, 2])
def test_a_refusal_leaves_the_answer(playground: Playground, ratios: int) -> None:
    if ratios == 2:
        playground.page.check("text=Two ratios side by side")
    playground.complete(**SHORT)

    def shown() -> list[object]:
        answers = [playground.answer(place) for place in range(ratios)]
        return [playground.page.locator(".answer").count(), *(answer.inner_text() for answer in answers)]

    before = shown()
    playground.set(max_tokens=CONTEXT)
    playground.page.click("text=Complete")
    playground.page.locator("#status", has_text="context").wait_for()
    expect(playground, 400, times=ratios)
    assert shown() == before
    playground.tokens.first.focus()
    assert "stream" in playground.page.locator("#card").inner_text()
    assert playground.page.locator("#stop").is_disabled()


def test_a_refusal_leaves_what_was_being_written(playground: Playground, server: Running) -> None:
    playground.set(**SHORT)
    server.engine.hold(after=5)
    playground.page.click("text=Complete")
    server.engine.wait_until_held()
    playground.tokens.nth(3).wait_for()
    written = 0
    while written != (written := playground.tokens.count()):  # the last ones may still be on their way
        playground.page.wait_for_timeout(300)
    playground.set(max_tokens=CONTEXT)
    playground.page.click("text=Complete")
    playground.page.locator("#status", has_text="context").wait_for()
    expect(playground, 400)
    assert playground.tokens.count() == written
    assert playground.page.locator(".text").get_attribute("aria-busy") == "false"
    assert playground.page.locator("dl dt").all_inner_texts()[0] == "Tokens"
    server.engine.let_go()


def test_what_the_form_refuses_is_not_sent(playground: Playground, server: Running) -> None:
    steps = server.engine.steps
    playground.set(**SHORT | {"max_tokens": 0})
    playground.page.click("text=Complete")
    assert playground.page.locator(":invalid").last.get_attribute("id") == "max_tokens"
    assert playground.page.locator(".answer").count() == 0
    assert server.engine.steps == steps


def test_a_server_with_keys(serve: Serve, visit: Visit) -> None:
    with serve(api_keys=ApiKeys.of(["sk-zwei-東"], "here")) as server:
        playground = visit(server.url)
        playground.wait_for("This server answers only with an API key that it knows.")
        expect(playground, 401)
        key = playground.page.locator("#key")
        assert key.get_attribute("aria-invalid") == "true"
        key.fill("sk-one")
        key.press("Tab")
        playground.page.wait_for_timeout(100)
        playground.wait_for("This server answers only")
        expect(playground, 401)
        key.fill("sk-zwei-東")
        key.press("Tab")
        playground.page.locator("#model", has_text="tiny").wait_for()
        playground.complete(**SHORT)
        playground.page.reload()
        playground.page.locator("#model", has_text="tiny").wait_for()
        assert playground.page.evaluate("[Object.values(sessionStorage), localStorage.length]") == [["sk-zwei-東"], 0]
        assert "東" not in playground.page.url


def test_a_full_queue_is_told_and_asked_again(serve: Serve, visit: Visit) -> None:
    with serve(max_batch_size=1, max_waiting_streams=4) as server, ThreadPoolExecutor() as pool:
        playground = visit(server.url)
        playground.set(**SHORT)
        server.engine.hold()
        answers = [pool.submit(server.complete, max_tokens=9)]
        server.engine.wait_until_held()
        answers.append(pool.submit(server.complete, prompt=["a", "b"], max_tokens=1))
        server.wait_until_asked()
        server.engine.pass_step()
        server.engine.wait_until_held()
        playground.page.click("text=Complete")
        server.wait_until_asked()
        server.engine.let_go()
        playground.wait_for("Asking again in")
        playground.wait_for("Done")
        assert all(answer.result() for answer in answers)
        expect(playground, 429)


def test_draining_is_told_and_asked_again(playground: Playground, server: Running) -> None:
    server.service.worker.draining = True
    playground.set(**SHORT)
    playground.page.click("text=Complete")
    playground.wait_for("The server takes no request at present: it is draining. Asking again in 1 s.")
    server.service.worker.draining = False
    playground.wait_for("Done")
    expect(playground, 503)
    assert playground.tokens.count() == 23


def test_waiting_can_be_stopped(playground: Playground, server: Running) -> None:
    server.service.worker.draining = True
    playground.set(**SHORT)
    playground.page.click("text=Complete")
    playground.wait_for("The server takes no request")
    playground.page.click("#stop")
    playground.wait_for("Stopped.")
    server.service.worker.draining = False
    expect(playground, 503)


def test_a_server_that_does_not_come_back_is_asked_four_times(playground: Playground, server: Running) -> None:
    server.service.worker.draining = True
    playground.set(**SHORT)
    playground.page.click("text=Complete")
    playground.page.get_by_text("it is draining.", exact=False).wait_for()
    playground.page.locator("#status", has_text="draining.").filter(has_not_text="again").wait_for(timeout=10_000)
    server.service.worker.draining = False
    expect(playground, 503, times=4)
    assert playground.page.locator("#stop").is_disabled()


def test_an_engine_that_fails_in_the_middle(serve: Serve, visit: Visit) -> None:
    with serve() as server:
        playground = visit(server.url)
        server.engine.hold(after=5)
        playground.set(**SHORT)
        playground.page.click("text=Complete")
        server.engine.wait_until_held()
        server.engine.fault = RuntimeError("a tensor burst")
        server.engine.let_go()
        playground.wait_for("The engine failed; the server is going down.")
        assert playground.tokens.count() >= 3, "what has been written stays"


def test_a_connection_that_breaks(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: Completion) -> None:
        raise ConnectionResetError("a cable is cut")

    monkeypatch.setattr(Completion, "last_chunks", cut)
    playground.set(**SHORT)
    playground.page.click("text=Complete")
    playground.wait_for("The connection broke before the answer was done.")
    assert playground.errors.pop().startswith("Failed to load resource")


def test_a_server_that_is_gone(serve: Serve, visit: Visit) -> None:
    with serve() as server:
        playground = visit(server.url)
        playground.page.locator("#model", has_text="tiny").wait_for()
    playground.page.click("text=Complete")
    playground.wait_for("The server cannot be reached.")
    assert "ERR_CONNECTION_REFUSED" in playground.errors.pop()
