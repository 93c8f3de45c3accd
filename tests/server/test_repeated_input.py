"""However long what a client sends, an error repeats little of it."""

import pytest

from tests.server.harness import Json, Running
from thoughtbubbles.server.protocol.chat_requests import ChatRequest, Message
from thoughtbubbles.server.protocol.requests import CompletionRequest, DetokenizeRequest, StreamOptions, TokenizeRequest

MOST = 600
"""Characters: a sentence, and twice what is repeated."""
DIGITS = 4300
"""Longer numbers are not JSON that is read."""
LONG = [10 ** (DIGITS - 1), -(10 ** (DIGITS - 2)), "9" * 4000, "\x00" * 4000, "🫧" * 4000]
NESTED = [lambda value: value, lambda value: [value], lambda value: [[value]], lambda value: {str(value): value}]
BODIES = {
    "/v1/completions": (CompletionRequest, {}),
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "a"}]}),
    "/tokenize": (TokenizeRequest, {"prompt": "a"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
}


def bodies(path: str) -> list[Json]:
    """Bodies of which one field is long, in every form that a field has."""
    schema, least = BODIES[path]
    values = [form(value) for value in LONG for form in NESTED]
    found = [{**least, name: value} for name in [*schema.model_fields, "unknown"] for value in values]
    found += [{**least, str(value): 1} for value in LONG]
    if "stream_options" in schema.model_fields:
        options = [{name: value} for name in StreamOptions.model_fields for value in values]
        found += [{**least, "stream": True, "stream_options": each} for each in options]
    if "messages" in least:
        found += [
            {"messages": [{**least["messages"][0], name: value}]} for name in Message.model_fields for value in values
        ]
    # Prompts that are answered would take their time.
    return [each for each in found if not isinstance(each.get("prompt"), str) or path == "/tokenize"]


@pytest.mark.parametrize("path", BODIES)
def test_an_error_is_never_long(server: Running, path: str) -> None:
    refused = 0
    for body in bodies(path):
        answer = server.client.post(path, json={"max_tokens": 1, **body} if "tokenize" not in path else body)
        if answer.status_code != 200:
            assert answer.status_code < 500, (body.keys(), answer.text[:500])
            error = answer.json()["error"]
            assert len(error["message"]) <= MOST, (list(body), error["message"][:100], len(error["message"]))
            assert len(error["param"] or "") <= MOST
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models/{}"), ("POST", "/v1/completions/{}/cancel"), ("GET", "/{}")]
)
@pytest.mark.parametrize("name", ["9" * 4000, "%00" * 4000, "%F0%9F%AB%A7" * 2000])
def test_a_path_is_repeated_in_short(server: Running, method: str, path: str, name: str) -> None:
    answer = server.client.request(method, path.format(name))
    assert answer.status_code == 404
    assert len(answer.json()["error"]["message"]) <= MOST


def test_a_sum_of_numbers_may_be_longer_than_each(server: Running) -> None:
    """Python refuses to write a number of over 4,300 digits."""
    error = server.error(400, prompt=[1], max_tokens=10**DIGITS - 1)
    assert (error["param"], error["code"]) == ("max_tokens", "integer_above_max_value")
