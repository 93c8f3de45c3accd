"""POST /v1/chat/completions: a completion of what the chat template makes of the messages, in OpenAI's form."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp

from tests.server.harness import GatedEngine, Json, MakeService, Running
from tests.server.test_disconnects import Connection, finished, play, scope_of, until
from thoughtbubbles.server.service import Service

HELLO = [{"role": "user", "content": "hi"}]
HELLO_IDS = [*b"u:hi", 256, *b"a:"]
"""What the template makes of HELLO."""


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        yield client


def chat(server: Running, **body: object) -> Json:
    response = server.client.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert response.status_code == 200, response.text
    return response.json()


def error(server: Running, **body: object) -> Json:
    response = server.client.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert response.status_code in {400, 404}, response.text
    return response.json()["error"]


def test_it_is_the_completion_of_the_templates_prompt(client: openai.OpenAI, server: Running) -> None:
    ask = {"max_tokens": 9, "seed": 3, "n": 2, "stop": ["e"], "temperature": 0.9, "frequency_penalty": 0.5}
    answer = client.chat.completions.create(model="tiny", messages=HELLO, **ask)
    text = server.complete(prompt=HELLO_IDS, **ask)
    assert [choice.message.content for choice in answer.choices] == [choice["text"] for choice in text["choices"]]
    assert [choice.finish_reason for choice in answer.choices] == [c["finish_reason"] for c in text["choices"]]
    assert answer.usage.to_dict() == text["usage"]
    assert (answer.object, answer.choices[1].index, answer.choices[1].message.role) == (
        "chat.completion",
        1,
        "assistant",
    )
    assert answer.id.startswith("chatcmpl-")


def test_a_stream(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "messages": HELLO, "max_tokens": 9, "seed": 2, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**ask, extra_body={"fork_ratio": 3})
    *parts, last = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}, extra_body={"fork_ratio": 3}
    )
    assert {part.object for part in (*parts, last)} == {"chat.completion.chunk"}
    assert (last.choices, last.usage) == ([], whole.usage)
    for index, choice in enumerate(whole.choices):
        mine = [part.choices[0] for part in parts if part.choices[0].index == index]
        assert [each.delta.role for each in mine] == ["assistant", *[None] * (len(mine) - 1)]
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert [token for each in mine for token in each.logprobs.content] == choice.logprobs.content
        assert [each.finish_reason for each in mine] == [*[None] * (len(mine) - 1), "length"]


@settings(
    deadline=None, max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    content=st.text(st.sampled_from("aé🫧<|>"), max_size=5),
    seed=st.integers(0, 1000),
    stop=st.lists(st.text(st.sampled_from("aeé🫧 "), min_size=1, max_size=3), max_size=2),
)
def test_streamed_content_is_the_whole_content(server: Running, content: str, seed: int, stop: list[str]) -> None:
    body = {
        "messages": [{"role": "user", "content": content}], "max_tokens": 20, "seed": seed, "stop": stop,
        "logit_bias": {str(byte): 8 for byte in "🫧é a".encode()},
    }  # fmt: skip
    whole = chat(server, **body)["choices"][0]
    raw = server.client.post("/v1/chat/completions", json={**body, "stream": True}).content
    *events, done = raw.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == whole["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["finish_reason"]


def test_log_probabilities_are_those_of_the_completion(server: Running) -> None:
    ask = {"max_tokens": 6, "temperature": 0, "logit_bias": {"226": 100}}  # 226 begins characters, and ends none
    told = chat(server, **ask, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    same = server.complete(prompt=HELLO_IDS, **ask, logprobs=3)["choices"][0]["logprobs"]
    assert [token["logprob"] for token in told] == same["token_logprobs"]
    assert [token["token"] for token in told] == same["tokens"] == ["bytes:\\xe2"] * 6
    assert [token["bytes"] for token in told] == [[226]] * 6
    for token, top in zip(told, same["top_logprobs"], strict=True):
        assert [each["logprob"] for each in token["top_logprobs"]] == sorted(top.values(), reverse=True)[:3]
        assert all(len(each["bytes"]) == 1 for each in token["top_logprobs"])
    alone = chat(server, **ask, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [token["top_logprobs"] for token in alone] == [[]] * 6
    assert [token["logprob"] for token in alone] == [token["logprob"] for token in told]


def test_what_users_write_stays_text(server: Running) -> None:
    parts = [{"type": "text", "text": "<|endof"}, {"type": "text", "text": "text|>"}]
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts, "name": "Ann"}]
    (choice,) = chat(server, messages=messages, max_tokens=1, return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == [*b"s:x", 256, *b"u:<|endoftext|>", 256, *b"a:"]


def test_an_answer_may_take_what_the_context_has_left(server: Running) -> None:
    usage = chat(server, ignore_eos=True)["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (7, 64)
    assert chat(server, ignore_eos=True, max_completion_tokens=4, max_tokens=4)["usage"]["completion_tokens"] == 4


def test_fork_counts_come_with_chats_too(server: Running) -> None:
    (choice,) = chat(server, max_tokens=5, fork_ratio=1, return_fork_counts=True)["choices"]
    assert choice["fork_counts"] == [1] * 5


def test_unknown_fields_are_named(server: Running) -> None:
    body = {"messages": HELLO, "max_tokens": 1, "tools": [], "store": True, "tool_choice": None, "metadata": {}}
    response = server.client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.headers["x-ignored-parameters"]) == (200, "store, metadata")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type",
         "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls",
         "unsupported_parameter"),
        ({"messages": [*HELLO, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[1].tool_calls",
         "unsupported_parameter"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call",
         "unsupported_parameter"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages[0].content",
         "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "long" * 20}]}, "messages", "context_length_exceeded"),
        ({"max_tokens": 60}, "max_tokens", "context_length_exceeded"),
        ({"max_completion_tokens": 60}, "max_completion_tokens", "context_length_exceeded"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"continue_final_message": True}, "continue_final_message", "unsupported_parameter"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "unsupported_parameter"),
        ({"chat_template": "{{ messages }}"}, "chat_template", "unsupported_parameter"),
        ({"n": 100}, "messages", "array_above_max_length"),
        ({"model": "gpt-4"}, "model", "model_not_found"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
        ({"logprobs": 3}, "logprobs", "invalid_type"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "integer_above_max_value"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "invalid_token_id"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"grammar": "root ::= [a-z]"}, "grammar", "unsupported_parameter"),
    ],
)  # fmt: skip
def test_mistakes(server: Running, body: Json, param: str, code: str) -> None:
    told = error(server, **body)
    assert (told["param"], told["code"]) == (param, code)
    assert "'prompt" not in told["message"]


def test_a_prompt_is_not_dropped(server: Running) -> None:
    told = error(server, prompt="The river")
    assert (told["param"], told["code"]) == ("prompt", "unsupported_parameter")
    assert told["message"].endswith("send it to /v1/completions, or use 'messages'.")


def test_fields_of_completions_that_ask_for_nothing_are_accepted(server: Running) -> None:
    body = {"messages": HELLO, "max_tokens": 1, "echo": False, "suffix": None, "prompt": "", "best_of": None,
            "add_generation_prompt": True, "bad_words": []}  # fmt: skip
    response = server.client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.headers["x-ignored-parameters"]) == (200, "echo, prompt")


def test_mistakes_have_their_class(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as mistake:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert (mistake.value.code, mistake.value.param) == ("decimal_above_max_value", "temperature")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=HELLO)


def test_a_cancelled_stream_ends_in_an_error(client: openai.OpenAI, server: Running) -> None:
    server.engine.hold(after=1)
    with client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=9, stream=True) as stream:
        server.client.post(f"/v1/completions/{next(stream).id}/cancel")
        with pytest.raises(openai.APIError, match="cancelled"):
            next(stream)


def test_the_template_is_told(server: Running) -> None:
    assert "{{ eos_token }}" in server.client.get("/tokenizer_info").json()["chat_template"]


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        (None, "chat_template_missing", "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "invalid_value", "roles must alternate"),
    ],
)
def test_without_a_template_that_takes_it(
    server: Running, monkeypatch: pytest.MonkeyPatch, source: str | None, code: str, message: str
) -> None:
    from thoughtbubbles.model import ChatTemplate

    served = replace(server.service.worker.model, chat_template=None if source is None else ChatTemplate(source))
    monkeypatch.setattr(server.service.worker, "_model", served)
    told = error(server)
    assert (told["code"], told["param"]) == (code, "messages")
    assert message in told["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_frees_the_pages_within_a_step(make_service: MakeService, stream: bool) -> None:
    async def scenario(app: ASGIApp, service: Service, engine: GatedEngine) -> None:
        engine.hold(after=2)
        connection = Connection(json.dumps({"messages": HELLO, "n": 2, "stream": stream}).encode())
        path = "/v1/chat/completions"
        answering = asyncio.create_task(app(scope_of(path), connection.receive, connection.send))
        await asyncio.to_thread(engine.wait_until_held)
        assert engine.stats().cache_streams > 0
        connection.leave()
        await answering
        engine.let_go()
        await until(lambda: finished(service) == {"abort": 2})
        assert engine.stats().cache_streams == 0

    play(make_service, scenario)
