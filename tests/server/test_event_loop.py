"""Whatever a client requests, the event loop answers others: long work runs on helper threads, and is bounded."""

import json
import threading
from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from tests.server.harness import Json, Running
from thoughtbubbles.server.http import offload
from thoughtbubbles.server.http.offload import INLINE_LENGTH, REQUESTS, TOKENS
from thoughtbubbles.server.protocol import body_size, validation
from thoughtbubbles.server.protocol.body_size import MAX_NESTED, MAX_VALUES, check_size
from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.errors import ApiError
from thoughtbubbles.server.protocol.requests import MAX_TEXT_LENGTH, CompletionRequest, DetokenizeRequest, RequestBody
from thoughtbubbles.server.routes import tokenizer as tokenizer_routes
from thoughtbubbles.server.routes.responding import answer_json

LONG = "a " * INLINE_LENGTH
ASKED = {
    "/tokenize": {"prompt": LONG},
    "/detokenize": {"tokens": [97] * INLINE_LENGTH},
    "/v1/completions": {"prompt": LONG},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}]},
}


@pytest.fixture
def busy() -> Iterator[threading.Event]:
    """Both threads for long work are at work until this is set."""
    done = threading.Event()
    for lane in (REQUESTS, TOKENS):
        lane.submit(done.wait, 30)
    yield done
    done.set()


@pytest.mark.parametrize("path", ASKED)
def test_while_long_work_is_done_others_are_answered(server: Running, busy: threading.Event, path: str) -> None:
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(server.client.post(path, json=ASKED[path]).status_code))
    asking.start()
    for _ in range(3):
        assert server.client.get("/health").status_code == 200
    assert server.client.post("/tokenize", json={"prompt": "short"}).status_code == 200
    assert server.complete(prompt="short", max_tokens=1)
    assert not answers
    busy.set()
    asking.join(30)
    assert answers == [400 if "completions" in path else 200]


def test_requests_for_text_do_not_wait_for_those_for_tokens(server: Running) -> None:
    done = threading.Event()
    TOKENS.submit(done.wait, 30)
    try:
        assert server.error(400, prompt=LONG)["code"] == "context_length_exceeded"
    finally:
        done.set()


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_all_of_a_long_answer_is_made_off_the_loop(server: Running, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Reading it, the tokens, and its JSON."""
    worked: dict[str, str] = {}

    def noted(name: str, work: object) -> object:
        def work_noted(*given: object, **named: object) -> object:
            worked[name] = threading.current_thread().name
            return work(*given, **named)

        return work_noted

    monkeypatch.setattr(tokenizer_routes, "to_json", noted("write", to_json))
    monkeypatch.setattr(validation, "from_json", noted("read", from_json))
    assert server.client.post(path, json=ASKED[path]).status_code == 200
    assert set(worked) == {"read", "write"}
    assert all(name.startswith("tokens") for name in worked.values()), worked


@pytest.mark.parametrize(
    "body",
    [b"[" + b"1," * (MAX_VALUES + 1) + b"1]", b"[" + b"[]," * MAX_NESTED + b"1]", b"[" + b"{}," * MAX_NESTED + b"1]",
     b"[" + b'"",' * MAX_NESTED + b'""]', b"[" * (MAX_NESTED + 1),
     b"{" + b",".join(b'"%d":1' % number for number in range(MAX_NESTED + 1)) + b"}",
     b'["\\\\"' + b',"\\""' * MAX_NESTED + b"]"],
    ids=["values", "arrays", "objects", "strings", "depth", "names", "escapes"],
)  # fmt: skip
def test_more_than_is_read_at_once_is_refused_before_it_is_read(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "from_json", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ApiError) as refused:
        validation.parse(b'{"prompt":' + body + b"}", CompletionRequest)
    assert (refused.value.status, refused.value.code) == (413, "request_too_large")


@pytest.mark.parametrize(
    "value",
    ["," * (MAX_VALUES + 1), "[{" * MAX_NESTED, '"' * (MAX_NESTED + 1), "\\" * (MAX_NESTED + 1),
     '\\",[' * MAX_NESTED, [1] * (MAX_VALUES - 1), [[]] * (MAX_NESTED - 3),
     {str(number): 1 for number in range(MAX_NESTED - 3)}],
    ids=["commas", "brackets", "quotes", "backslashes", "all", "values", "arrays", "names"],
)  # fmt: skip
def test_what_stands_in_strings_is_not_counted(value: object) -> None:
    check_size(json.dumps({"prompt": value}).encode())


MANY = 5000
MISTAKES: list[tuple[type[RequestBody], Json]] = [
    (DetokenizeRequest, {"tokens": ["a"] * MANY}),
    (CompletionRequest, {"prompt": [1, *["a"] * MANY]}),
    (CompletionRequest, {"prompt": ["a", *[1] * MANY]}),
    (CompletionRequest, {"prompt": [["a"] * MANY] * 2}),
    (CompletionRequest, {"stop": [1] * MANY}),
    (CompletionRequest, {"stop_token_ids": ["a"] * MANY}),
    (CompletionRequest, {"logit_bias": {str(number): "a" for number in range(MANY)}}),
    (CompletionRequest, {"logit_bias": dict.fromkeys(map(str, range(MANY)), 101)}),
    (ChatRequest, {"messages": ["a"] * MANY}),
    (ChatRequest, {"messages": [{}] * MANY}),
    (ChatRequest, {"messages": [{"role": "user", "content": ["a"] * MANY}]}),
    (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
]


@pytest.mark.parametrize(("schema", "body"), MISTAKES)
def test_of_many_mistakes_few_are_collected(schema: type[RequestBody], body: Json) -> None:
    """Listing two million mistakes once took 37 s, during which no other thread ran."""
    with pytest.raises(ValidationError) as found:
        schema.model_validate(body)
    assert found.value.error_count() <= 3


@pytest.mark.parametrize("path", sorted({*ASKED} - {"/detokenize"}))
def test_a_text_has_a_longest_length(server: Running, path: str) -> None:
    texts = {"prompt": "a" * (MAX_TEXT_LENGTH + 1)} if path != "/v1/chat/completions" else {
        "messages": [{"role": "user", "content": "a" * (MAX_TEXT_LENGTH // 2)}] * 3
    }  # fmt: skip
    answer = server.client.post(path, json=texts)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "string_above_max_length")
    assert str(MAX_TEXT_LENGTH) in answer.json()["error"]["message"]


def test_the_longest_text_has_its_tokens(server: Running) -> None:
    answer = server.client.post("/tokenize", json={"prompt": "ab" * (MAX_TEXT_LENGTH // 2)}).json()
    assert (answer["count"], len(answer["tokens"])) == (MAX_TEXT_LENGTH, MAX_TEXT_LENGTH)
    assert server.client.post("/tokenize", json={"prompt": "," * MAX_TEXT_LENGTH}).json()["count"] == MAX_TEXT_LENGTH


def test_an_answer_made_a_choice_at_a_time_is_the_same_answer() -> None:
    answer = {"id": "a", "choices": [{"text": "é", "logprobs": None}, {"text": '"'}], "usage": {"total_tokens": 3}}
    assert from_json(answer_json(answer)) == answer
    assert from_json(answer_json({"id": "a", "choices": []})) == {"id": "a", "choices": []}


def test_each_kind_of_long_work_has_one_thread() -> None:
    """More would each keep the loop waiting for a turn of the interpreter."""
    assert {lane._max_workers for lane in (offload.REQUESTS, offload.TOKENS)} == {1}
    assert body_size.MAX_VALUES > body_size.MAX_NESTED
