"""Every error of API.md §4 that exists by now, and that nothing else comes out."""

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.harness import Json, Running, Serve
from thoughtbubbles.server.protocol.errors import ApiError
from thoughtbubbles.server.protocol.requests import CompletionRequest
from thoughtbubbles.server.protocol.validation import parse

MAXIMUM = "above_max_value"
MINIMUM = "below_min_value"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"null", b"\xff", b'{"n": NaN}', b"[" * 5000])
def test_a_body_that_is_no_json_object(server: Running, body: bytes) -> None:
    response = server.client.post("/v1/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("text", [r"\ud83d", r"\ud83d x", r"\ud83d\ud83d", r"\ude00"])
def test_half_of_a_character_is_said_to_be_one(server: Running, text: str) -> None:
    """JavaScript and Python make it of a text that is cut within an emoji. The message was of the end of an escape."""
    response = server.client.post("/v1/completions", content=f'{{"prompt": "{text}"}}')
    assert response.status_code == 400
    assert "half a surrogate pair, as of an emoji that was cut, at line 1 column" in response.json()["error"]["message"]


def test_a_byte_order_mark_is_skipped(server: Running) -> None:
    """Windows' PowerShell writes one at the start of a file, which `curl -d @file` sends."""
    response = server.client.post("/v1/completions", content=b'\xef\xbb\xbf{"prompt": "x", "max_tokens": 1}')
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "identity, br", "x" * 999])
def test_a_compressed_body_is_refused_for_its_encoding(server: Running, path: str, encoding: str) -> None:
    """It is not JSON before it is decompressed, and nothing here does that."""
    body = gzip.compress(b'{"prompt": "x", "max_tokens": 1}')
    response = server.client.post(path, content=body, headers={"content-encoding": encoding})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (415, "invalid_request_error", None)
    assert error["code"] == "unsupported_content_encoding"
    assert re.match(r"Content-Encoding '.{2,199} is not supported: send the body uncompressed", error["message"])
    assert response.headers["x-should-retry"] == "false"


def test_the_second_of_two_encodings_is_seen(server: Running) -> None:
    headers = [("content-encoding", "identity"), ("content-encoding", "gzip")]
    assert server.client.post("/v1/completions", content=b"{}", headers=headers).status_code == 415


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_an_encoding_that_changes_nothing_is_read(server: Running, encoding: str) -> None:
    body = b'{"prompt": "x", "max_tokens": 1}'
    response = server.client.post("/v1/completions", content=body, headers={"content-encoding": encoding})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"n": "x"}, "Invalid type for 'n': expected an integer, but got a string instead."),
        ({"n": 1.5}, "Invalid type for 'n': expected an integer, but got a decimal instead."),
        ({"max_tokens": True}, "Invalid type for 'max_tokens': expected an integer, but got a boolean instead."),
        ({"temperature": "hot"}, "Invalid type for 'temperature': expected a decimal, but got a string instead."),
        ({"stream": 1}, "Invalid type for 'stream': expected a boolean, but got an integer instead."),
        ({"user": []}, "Invalid type for 'user': expected a string, but got an array instead."),
        ({"logit_bias": "1"}, "Invalid type for 'logit_bias': expected an object, but got a string instead."),
        ({"logit_bias": {"1": {}}}, "Invalid type for 'logit_bias.1': expected a decimal, but got an object instead."),
        ({"stop": [None]}, "Invalid type for 'stop[0]': expected a string, but got null instead."),
        ({"prompt": [1, "a"]}, "Invalid type for 'prompt[1]': expected an integer, but got a string instead."),
        ({"prompt": [[1], [2.5]]}, "Invalid type for 'prompt[1][0]': expected an integer, but got a decimal instead."),
        (
            {"stream": True, "stream_options": {"include_usage": 0}},
            "Invalid type for 'stream_options.include_usage': expected a boolean, but got an integer instead.",
        ),
    ],
)  # fmt: skip
def test_a_wrong_type(server: Running, body: Json, message: str) -> None:
    error = server.error(400, **body)
    param = message.split("'")[1]
    assert error == {"message": message, "type": "invalid_request_error", "param": param, "code": "invalid_type"}


@pytest.mark.parametrize("prompt", [5, {}, [True], [1.5], [None]])
def test_a_prompt_of_no_known_form(server: Running, prompt: object) -> None:
    error = server.error(400, prompt=prompt)
    assert (error["param"], error["code"]) == ("prompt", "invalid_type")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"n": 0}, "n", f"integer_{MINIMUM}"),
        ({"n": 129}, "n", f"integer_{MAXIMUM}"),
        ({"best_of": 21}, "best_of", f"integer_{MAXIMUM}"),
        ({"best_of": 2, "n": 3}, "best_of", f"integer_{MINIMUM}"),
        ({"max_tokens": -1}, "max_tokens", f"integer_{MINIMUM}"),
        ({"min_tokens": 17}, "min_tokens", f"integer_{MAXIMUM}"),
        ({"logprobs": 21}, "logprobs", f"integer_{MAXIMUM}"),
        ({"seed": 2**63}, "seed", f"integer_{MAXIMUM}"),
        ({"seed": -(2**63) - 1}, "seed", f"integer_{MINIMUM}"),
        ({"top_k": -2}, "top_k", f"integer_{MINIMUM}"),
        ({"temperature": 2.1}, "temperature", f"decimal_{MAXIMUM}"),
        ({"temperature": -0.1}, "temperature", f"decimal_{MINIMUM}"),
        ({"top_p": 0}, "top_p", f"decimal_{MINIMUM}"),
        ({"top_p": 1.1}, "top_p", f"decimal_{MAXIMUM}"),
        ({"min_p": 1.1}, "min_p", f"decimal_{MAXIMUM}"),
        ({"presence_penalty": 2.5}, "presence_penalty", f"decimal_{MAXIMUM}"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", f"decimal_{MINIMUM}"),
        ({"repetition_penalty": 0}, "repetition_penalty", f"decimal_{MINIMUM}"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", f"decimal_{MAXIMUM}"),
        ({"fork_ratio": 0.9}, "fork_ratio", f"decimal_{MINIMUM}"),
        ({"fork_ratio": 4.1}, "fork_ratio", f"decimal_{MAXIMUM}"),
        ({"fork_selection": "all"}, "fork_selection", "invalid_value"),
        ({"stop": ["a"] * 65}, "stop", "array_above_max_length"),
        ({"stop": ["a", ""]}, "stop[1]", "empty_string"),
        ({"prompt": ["a"] * 1025}, "prompt", "array_above_max_length"),
        ({"prompt": ["a"] * 257, "n": 2}, "prompt", "array_above_max_length"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": [[1], []]}, "prompt[1]", "empty_array"),
        ({"prompt": [257]}, "prompt[0]", "invalid_token_id"),
        ({"prompt": [[1], [-1]]}, "prompt[1][0]", "invalid_token_id"),
        ({"stop_token_ids": [10**30]}, "stop_token_ids[0]", "invalid_token_id"),
        ({"logit_bias": {"257": 1}}, "logit_bias", "invalid_token_id"),
        ({"logit_bias": {"٣": 1}}, "logit_bias", "invalid_token_id"),
        ({"prompt": [1] * 64}, "prompt", "context_length_exceeded"),
        ({"prompt": [1] * 49}, "max_tokens", "context_length_exceeded"),
        ({"max_tokens": 64}, "max_tokens", "context_length_exceeded"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"json_schema": {"type": "object"}}, "json_schema", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages", "unsupported_parameter"),
        ({"prompt": "a", "messages": []}, "messages", "unsupported_parameter"),
        ({"max_completion_tokens": 200}, "max_completion_tokens", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"allowed_token_ids": [65]}, "allowed_token_ids", "unsupported_parameter"),
        ({"bad_words": ["a"]}, "bad_words", "unsupported_parameter"),
        ({"prompt_logprobs": 0}, "prompt_logprobs", "unsupported_parameter"),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "unsupported_parameter"),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids", "unsupported_parameter"),
        ({"use_beam_search": True}, "use_beam_search", "unsupported_parameter"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"stream": True, "best_of": 2}, "best_of", "invalid_value"),
    ],
)
def test_what_cannot_be_served(server: Running, body: Json, param: str, code: str) -> None:
    error = server.error(400, **body)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_messages_say_both_numbers(server: Running) -> None:
    assert server.error(400, n=130)["message"] == (
        "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 130 instead."
    )
    assert server.error(400, top_p=0)["message"] == (
        "Invalid 'top_p': decimal below minimum value. Expected a value > 0, but got 0 instead."
    )
    assert server.error(400, min_p=1.0000001)["message"] == (
        "Invalid 'min_p': decimal above maximum value. Expected a value <= 1, but got 1.0000001 instead."
    )
    assert server.error(400, prompt=[1] * 60, max_tokens=5)["message"] == (
        "This model's maximum context length is 64 tokens, but 65 were requested: 60 in the prompt and 5 for the"
        " completion."
    )
    assert server.error(400, prompt=[3, 300])["message"] == (
        "Invalid 'prompt[1]': '300' is not a token id; the largest one is 256."
    )


def test_a_field_of_chats_is_refused_with_what_to_do_instead(server: Running) -> None:
    """Without its messages a chat would be answered from the end-of-text token."""
    assert server.error(400, messages=[{"role": "user", "content": "hi"}])["message"] == (
        "Unsupported parameter: 'messages' is not a field of this route: send it to /v1/chat/completions, or use"
        " 'prompt'."
    )
    assert "use 'max_tokens'" in server.error(400, max_completion_tokens=200)["message"]


def test_the_input_is_repeated_in_short(server: Running) -> None:
    for body in ({"model": "x" * 5000}, {"logit_bias": {"9" * 5000: 1}}, {"fork_selection": "y" * 5000}):
        (error,) = {server.error(404 if "model" in body else 400, **body)["message"]}
        assert len(error) < 350


def test_an_unknown_model(server: Running) -> None:
    error = server.error(404, model="gpt-4")
    assert error == {
        "message": "The model 'gpt-4' does not exist; this server has 'tiny'.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert server.complete(model="tiny", max_tokens=1)
    assert server.complete(model="", max_tokens=1)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/completions/", 404, "not_found"),
        ("GET", "/health/", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/completions/x/cancel", 404, "not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_what_is_not_there(server: Running, method: str, path: str, status: int, code: str) -> None:
    response = server.client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers["x-request-id"]


def test_a_body_over_the_limit(serve: Serve) -> None:
    with serve(max_body_bytes=2000) as server:
        error = server.error(413, prompt="a" * 4000)
        assert error["code"] == "request_too_large"
        assert server.error(400, prompt="a" * 1900)["code"] == "context_length_exceeded"
        # Nothing says how long this one is; it is counted as it comes.
        response = server.client.post("/v1/completions", content=(b" " * 100 for _ in range(50)))
        assert response.status_code == 413


def test_the_clients_own_request_id_comes_back(server: Running) -> None:
    get = server.client.get
    assert get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {get("/health", headers=given).headers["x-request-id"] for given in ({}, {"x-request-id": "y" * 129})}
    assert len(made) == 2
    assert all(each.startswith("req-") for each in made)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(CompletionRequest.model_fields)), JSON, max_size=4))
def test_whatever_is_sent_is_understood_or_refused(body: Json) -> None:
    error = None
    try:
        request = parse(json.dumps(body).encode(), CompletionRequest)
    except ApiError as refusal:
        error = refusal
    if error is None:
        assert request.prompts
    else:
        assert (error.status, bool(error.code), error.message.count("\n")) == (400, True, 0)
