"""POST /v1/completions as server-sent events (API.md §3)."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.harness import Json, Running, Serve, chunks, events, joined, keeping_up

BYTES = st.integers(0, 255)
EMOJI = {str(byte): 8 for byte in "🫧é".encode()}


def assert_streams_alike(server: Running, **body: object) -> None:
    """The stream, put together, is the answer that is not streamed."""
    whole, parts = server.complete(**body), chunks(server, **body)
    assert [joined(parts, choice["index"]) for choice in whole["choices"]] == whole["choices"]


def test_the_bytes_on_the_wire(server: Running) -> None:
    body = {"prompt": "wire", "max_tokens": 3, "stream": True}
    raw = server.client.post("/v1/completions", json=body).content
    assert re.fullmatch(rb"(data: \{[^\r\n]*\}\n\n)+data: \[DONE\]\n\n", raw)


def test_id_created_and_model_stay_the_same(server: Running) -> None:
    parts = chunks(server, prompt=["a", "b"], max_tokens=4)
    assert len({(part["id"], part["created"], part["model"], part["object"]) for part in parts}) == 1
    assert not any("usage" in part for part in parts)


def test_usage_comes_in_a_chunk_of_its_own(server: Running) -> None:
    ask = {"prompt": "usage", "max_tokens": 4, "n": 2, "seed": 1}
    *parts, last = chunks(server, **ask, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == server.complete(**ask)["usage"]
    assert all(part["usage"] is None for part in parts)


def test_usage_so_far_comes_with_every_chunk(server: Running) -> None:
    with keeping_up(server):
        parts = chunks(server, prompt="usage", max_tokens=4, ignore_eos=True, logit_bias={"65": 100},
                       stream_options={"continuous_usage_stats": True})  # fmt: skip
    assert [part["usage"]["completion_tokens"] for part in parts] == [1, 2, 3, 4]


def test_choices_come_interleaved(server: Running) -> None:
    with keeping_up(server):
        parts = chunks(server, prompt=["one", "two"], n=2, max_tokens=6, logit_bias={"65": 100})
    assert [part["choices"][0]["index"] for part in parts] == [0, 1, 2, 3] * 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logprobs": 2, "return_token_ids": True},
        {"echo": True},
        {"echo": True, "logprobs": 1, "return_fork_counts": True, "return_token_ids": True},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"n": 3, "logprobs": 0},
        {"return_fork_counts": True, "fork_ratio": 3, "return_token_ids": True},
        {"stop": ["ab", "bca", "cc"], "logprobs": 0, "logit_bias": {str(byte): 20 for byte in b"abc"}},
        {"stop": "🫧", "logprobs": 0, "logit_bias": EMOJI},
        {"logit_bias": {"256": 12}, "return_token_ids": True},
    ],
)
def test_a_stream_is_the_same_answer(server: Running, options: Json) -> None:
    assert_streams_alike(server, **{"prompt": ["🫧 stream", "b"], "max_tokens": 20, "seed": 11, **options})


ASKED = st.fixed_dictionaries(
    {
        "prompt": st.lists(BYTES, min_size=1, max_size=12),
        "seed": st.integers(0, 999),
        "logit_bias": st.dictionaries(
            st.sampled_from([str(byte) for byte in "🫧é€ab".encode()]), st.just(15), min_size=2
        ),
        "stop": st.lists(st.text("🫧é€ab", min_size=1, max_size=3), max_size=3),
        "echo": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ASKED)
def test_deltas_are_the_text_are_the_decoded_ids(server: Running, asked: Json) -> None:
    ask = {**asked, "max_tokens": 24, "return_token_ids": True}
    choice = joined(chunks(server, **ask), 0)
    assert choice == server.complete(**ask)["choices"][0]
    generated = bytes(each for each in choice["token_ids"] if each < 256)
    whole = (bytes(asked["prompt"]) * asked["echo"] + generated).decode("utf-8", "replace")
    text = choice["text"]
    if choice["stop_reason"] is None:
        assert text == whole
    else:
        assert whole.startswith(text + choice["stop_reason"])
        assert asked["echo"] or not any(stop in text for stop in asked["stop"])


def test_words_come_as_they_are_made(server: Running) -> None:
    server.engine.hold(after=1)
    with events(server, prompt="slow", max_tokens=3, logit_bias={"65": 100}) as told:
        for _ in range(3):
            assert json.loads(next(told))["choices"][0]["text"] == "A"
            server.engine.pass_step()
        assert next(told) == "[DONE]"


def test_what_could_become_a_stop_is_held_back_and_no_more(server: Running) -> None:
    with keeping_up(server):
        parts = chunks(server, prompt="held", max_tokens=4, logit_bias={"65": 100}, stop=["AB"])
    assert [part["choices"][0]["text"] for part in parts] == ["A", "A", "AA"]


def test_a_silent_stream_is_kept_alive_by_comments(serve: Serve) -> None:
    with serve(keep_alive_seconds=0.05) as server:
        server.engine.hold(after=1)
        body = {"prompt": "quiet", "max_tokens": 2, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            assert next(lines).startswith("data: {")
            assert next(lines) == ": keep-alive"
            server.engine.let_go()
            assert "data: [DONE]" in list(lines)


def test_a_refusal_keeps_its_status(server: Running) -> None:
    response = server.client.post("/v1/completions", json={"prompt": [1] * 65, "stream": True})
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")


def test_cancel_ends_a_stream_with_an_error(server: Running) -> None:
    server.engine.hold(after=1)
    with events(server, prompt="cancel", max_tokens=30) as told:
        name = json.loads(next(told))["id"]
        assert server.client.post(f"/v1/completions/{name}/cancel").json() == {"id": name, "cancelled": True}
        assert json.loads(next(told))["error"]["code"] == "cancelled"
        assert next(told) == "[DONE]"
    again = server.client.post(f"/v1/completions/{name}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")


def test_other_clients_go_on_beside_a_stream(server: Running) -> None:
    """The event loop waits for no step: while one is blocked, everything else is answered."""
    server.engine.hold(after=1)
    with events(server, prompt="long", max_tokens=2) as told:
        next(told)
        server.engine.wait_until_held()
        for path in ("/health", "/ready", "/v1/models", "/metrics", "/version", "/tokenizer_info"):
            assert server.client.get(path).status_code == 200
        tokens = server.client.post("/tokenize", json={"prompt": "meanwhile"}).json()["tokens"]
        assert bytes(tokens) == b"meanwhile"
        assert server.client.post("/v1/completions", json={"n": 0}).status_code == 400
        server.engine.let_go()
        assert list(told)[-1] == "[DONE]"


def test_each_in_a_mix_is_answered_as_alone(server: Running) -> None:
    ask = {"max_tokens": 10, "seed": 3, "stop": ["e"]}
    prompts = [f"stream {'x' * number}" for number in range(12)]
    alone = [joined(chunks(server, prompt=prompt, **ask), 0)["text"] for prompt in prompts]
    together = chunks(server, prompt=prompts, **ask)
    assert [joined(together, index)["text"] for index in range(12)] == alone


def test_no_cache_and_no_proxy_keeps_events_back(server: Running) -> None:
    response = server.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1, "stream": True})
    sent = {name: response.headers[name] for name in ("content-type", "cache-control", "x-accel-buffering")}
    assert sent == {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store",
                    "x-accel-buffering": "no"}  # fmt: skip


def test_a_stream_whose_connection_closes_has_no_keep_alive(server: Running) -> None:
    """Clients that read the first of two headers, as Python's http.client does, would use the connection again."""
    body = {"prompt": "x", "max_tokens": 1, "stream": True}
    response = server.client.post("/v1/completions", json=body, headers={"connection": "close"})
    assert response.headers.get_list("connection") == ["close"]
