"""NaN logits end one client's request with a named error; the server and other clients continue."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engine.embedded import embed
from tests.server.harness import Running, chunks, events, eventually
from tests.server.test_operation import assert_law, samples

BROKEN = 200
FORCED = {"logit_bias": {str(BROKEN): 100}, "max_tokens": 8, "ignore_eos": True}
"""Draws the token whose embedding is broken."""
FINE = {"prompt": "innocent", "max_tokens": 20, "ignore_eos": True, "seed": 5, "return_token_ids": True}


@pytest.fixture
def broken(server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """The server, one token of whose model is embedded as NaN."""
    embed(monkeypatch, server.engine.model, BROKEN, math.nan)
    yield server
    eventually(lambda: not server.engine.has_work)


def count(server: Running) -> dict[str, float]:
    found = samples(server)
    return {
        "metric": found["non_finite_logits_total",],
        "error": found["request_finished_total", "error"],
        "abort": found["request_finished_total", "abort"],
        "e2e": found["e2e_request_latency_seconds_count",],
    }


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [65, BROKEN, 66], "max_tokens": 3},
        {"prompt": [65, BROKEN, 66], "max_tokens": 0, "echo": True, "logprobs": 2},
        FORCED,
        {**FORCED, "logprobs": 3, "return_fork_counts": True},
        {**FORCED, "best_of": 3},
    ],
    ids=["prompt", "scored prompt", "drawn", "everything", "best of"],
)
def test_a_whole_answer(broken: Running, body: dict[str, object]) -> None:
    before = count(broken)
    response = broken.client.post("/v1/completions", json=body)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"] == {
        "message": "The model's logits for this request are NaN or infinite, so that it was ended.",
        "type": "server_error", "param": None, "code": "non_finite_logits",
    }  # fmt: skip
    eventually(lambda: not broken.engine.has_work)
    after = count(broken)
    assert after["metric"] > before["metric"]
    ended = sum(after[reason] - before[reason] for reason in ("error", "abort"))
    assert ended == body.get("best_of", 1)
    assert after["e2e"] == before["e2e"], "it did not end by itself"
    assert broken.client.get("/ready").status_code == 200
    assert_law(samples(broken))


def test_a_stream_and_its_neighbours(broken: Running) -> None:
    alone = broken.complete(**FINE)["choices"][0]["token_ids"]
    with ThreadPoolExecutor() as pool:
        broken.engine.hold()
        others = [pool.submit(broken.complete, **FINE) for _ in range(3)]
        broken.engine.wait_until_held()
        streamed = pool.submit(lambda: list(_told(broken)))
        eventually(lambda: broken.service.worker._thread._commands.qsize() >= 1)
        broken.engine.let_go()
        *_, error, done = streamed.result()
        assert json.loads(error)["error"]["code"] == "non_finite_logits"
        assert done == "[DONE]"
        assert [other.result()["choices"][0]["token_ids"] for other in others] == [alone] * 3
    assert broken.service.worker.failure is None


def test_a_stream_has_the_token_that_waited_for_its_forks(broken: Running) -> None:
    """Without the count, since what the forks were computed from is NaN."""
    before = count(broken)
    with events(broken, prompt="x", **FORCED, return_fork_counts=True, return_token_ids=True) as told:
        *texts, error, done = told
    choices = [json.loads(text)["choices"][0] for text in texts]
    assert [value for each in choices for value in each["token_ids"]] == [BROKEN]
    assert [value for each in choices for value in each["fork_counts"]] == [None]
    assert {each["finish_reason"] for each in choices} == {None}
    assert json.loads(error)["error"]["code"] == "non_finite_logits"
    assert done == "[DONE]"
    assert broken.service.worker.failure is None
    after = count(broken)
    assert after["error"] == before["error"] + 1
    assert_law(samples(broken))


def test_a_stream_has_all_text_before_the_error(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what could have become a stop string."""
    letter = ord("A")
    embed(monkeypatch, server.engine.model, letter, math.nan)
    forced = {"logit_bias": {str(letter): 100}, "stop": "AB", "max_tokens": 8, "return_token_ids": True}
    with events(server, prompt="x", **forced) as told:
        *texts, error, _ = told
    choices = [json.loads(text)["choices"][0] for text in texts]
    assert "".join(each["text"] for each in choices) == "A"
    assert [value for each in choices for value in each["token_ids"]] == [letter]
    assert json.loads(error)["error"]["code"] == "non_finite_logits"
    eventually(lambda: not server.engine.has_work)


def _told(server: Running) -> Iterator[str]:
    with events(server, prompt="innocent", **FORCED) as told:
        yield from told


def test_the_choices_of_one_request_end_together(broken: Running) -> None:
    """One is an answer's part, and a part of it would be missing."""
    error = broken.error(500, prompt=[[65, 66], [65, BROKEN]], max_tokens=30, stream=True)
    assert error["code"] == "non_finite_logits"
    eventually(lambda: not broken.engine.has_work)
    assert chunks(broken, prompt=[[65, 66]], max_tokens=3)
