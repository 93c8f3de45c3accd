"""Text that matches a schema, an expression or a grammar, by the fields of OpenAI and vLLM."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.server.harness import Json, Running, chunks, connected, eventually, joined
from thoughtbubbles.engine import Grammar
from thoughtbubbles.engine.structured import compilation, compiler
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.server.http.offload import GRAMMARS
from thoughtbubbles.server.protocol import grammars

SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"response_format": FORMAT}, r'\{"n": ?[12], ?"ok": ?(true|false)\}'),
        ({"guided_json": SCHEMA}, r'\{"n": ?[12], ?"ok": ?(true|false)\}'),
        ({"guided_json": json.dumps({"const": None})}, "null"),
        ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'root ::= "a" [0-9]'}, "a[0-9]"),
        ({"guided_grammar": 'start: "a" /[0-9]/'}, "a[0-9]"),
        ({"structured_outputs": {"json": {"enum": [1]}}}, "1"),
        ({"structured_outputs": {"regex": "x{4}"}}, "x{4}"),
        ({"structured_outputs": {"choice": ["on"]}}, "on"),
        ({"structured_outputs": {"grammar": 'start: "b"'}}, "b"),
    ],
)
def test_every_field(server: Running, fields: Json, pattern: str) -> None:
    for choice in server.complete(prompt="x", max_tokens=40, n=3, seed=1, **fields)["choices"]:
        assert re.fullmatch(pattern, choice["text"])
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("fields", [{"response_format": {"type": "json_object"}},
                                    {"structured_outputs": {"json_object": True}}])  # fmt: skip
def test_any_object(server: Running, fields: Json) -> None:
    text = server.complete(prompt="x", max_tokens=1, **fields)["choices"][0]["text"]
    assert text == "{"


@pytest.mark.parametrize("fields", [{"response_format": {"type": "text"}}, {"structured_outputs": {}}])
def test_neutral_fields_change_nothing(server: Running, fields: Json) -> None:
    asked: Json = {"prompt": "x", "seed": 1, "max_tokens": 9}
    assert server.complete(**asked, **fields)["choices"] == server.complete(**asked)["choices"]


def test_a_stream_adds_up_to_the_whole_answer(server: Running) -> None:
    asked: Json = {"prompt": "x", "max_tokens": 40, "seed": 3, "response_format": FORMAT, "logprobs": 1, "echo": True}
    assert joined(chunks(server, **asked), 0) == server.complete(**asked)["choices"][0]


def test_a_conversation_with_the_official_client(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        response_format=FORMAT,  # type: ignore[arg-type]
        extra_body={"top_k": 50},
    )
    assert json.loads(answer.choices[0].message.content or "").keys() == {"n", "ok"}
    client.close()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}}},
            "response_format",
            "invalid_grammar",
        ),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "text", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
            "invalid_value",
        ),
        ({"guided_json": [1]}, "guided_json", "invalid_type"),
        ({"guided_json": "{"}, "guided_json", "invalid_value"),
        ({"guided_json": {"type": "text"}}, "guided_json", "invalid_grammar"),
        ({"guided_regex": "(a"}, "guided_regex", "invalid_grammar"),
        ({"guided_regex": "a" * 20000}, "guided_regex", "string_above_max_length"),
        ({"guided_choice": []}, "guided_choice", "empty_array"),
        ({"guided_choice": [1]}, "guided_choice[0]", "invalid_type"),
        ({"guided_grammar": "start: missing"}, "guided_grammar", "invalid_grammar"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "invalid_value"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "invalid_value"),
        ({"structured_outputs": {"json": 1}}, "structured_outputs.json", "invalid_type"),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag",
            "unsupported_parameter",
        ),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "unsupported_parameter"),
        # Hugging Face's InferenceClient sends a json_schema in this form of TGI.
        ({"response_format": {"type": "json_object", "value": {}}}, "response_format.value", "unsupported_parameter"),
        ({"regex": "a"}, "regex", "unsupported_parameter"),  # SGLang's names
        ({"ebnf": 'root ::= "a"'}, "ebnf", "unsupported_parameter"),
        ({"structural_tag": "{}"}, "structural_tag", "unsupported_parameter"),
        ({"structured_outputs": {"grammar": "?"}}, "structured_outputs.grammar", "invalid_grammar"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "invalid_value"),
    ],
)
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_mistakes(server: Running, route: str, fields: Json, param: str, code: str) -> None:
    prompt: Json = {"messages": [{"role": "user", "content": "x"}]} if route.startswith("chat") else {"prompt": "x"}
    response = server.client.post(f"/v1/{route}", json=prompt | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


def test_a_schema_that_cannot_be_served_says_why(server: Running) -> None:
    error = server.error(400, prompt="x", guided_json={"type": "array", "uniqueItems": True})
    assert error["message"] == 'guided_json cannot be used: Unimplemented keys: ["uniqueItems"].'


def test_without_the_extra_it_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "find_spec", lambda _name: None)
    error = server.error(400, prompt="x", guided_regex="another")
    assert (error["param"], error["code"]) == ("guided_regex", "unsupported_parameter")
    assert error["message"] == (
        "Unsupported parameter: 'guided_regex' needs the extra 'structured', which this server is installed without."
    )


def test_others_are_answered_while_a_grammar_is_compiled(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = threading.Event(), threading.Event()
    check = grammars.check_grammar

    def slowly(grammar: Grammar, tokenizer: Tokenizer) -> None:
        began.set()
        assert may_end.wait(30)
        check(grammar, tokenizer)

    monkeypatch.setattr(grammars, "check_grammar", slowly)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.complete, prompt="x", guided_choice=["slow"], max_tokens=9)
        assert began.wait(30)
        assert server.complete(prompt="x", max_tokens=3)["choices"]
        may_end.set()
        assert waiting.result()["choices"][0]["text"] == "slow"


def test_a_grammar_of_a_client_that_has_left_is_not_compiled(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All threads compile; one more client waits for one of them, and disconnects."""
    may_end, began = threading.Event(), list[str]()

    def slowly(grammar: Grammar, tokenizer: Tokenizer) -> None:
        began.append(grammar.text)
        assert may_end.wait(30)

    monkeypatch.setattr(grammars, "check_grammar", slowly)
    with ThreadPoolExecutor() as pool, caplog.at_level("INFO", "thoughtbubbles.server.requests"):
        threads = GRAMMARS._max_workers
        waiting = [pool.submit(server.complete, guided_regex=f"a{i}", max_tokens=4) for i in range(threads)]
        eventually(lambda: len(began) == threads)
        with connected(server) as client:
            body = b'{"guided_regex": "gone"}'
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            eventually(lambda: GRAMMARS._work_queue.qsize() == 1)
        try:
            eventually(lambda: any(each.fields["status"] == 499 for each in caplog.records), seconds=5)
        finally:
            may_end.set()
        assert [each.result()["choices"][0]["text"] for each in waiting] == [f"a{i}" for i in range(threads)]
    assert "gone" not in began


def test_a_grammar_that_becomes_too_complex(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "MOST_LEXER_STATES", 30)
    error = server.error(400, prompt="x", guided_regex="([a-z]{3}[0-9]{4}|[a-f]+x){9}", max_tokens=60)
    assert error["code"] == "grammar_too_complex"
    assert server.complete(prompt="x", guided_choice=["fine"])["choices"][0]["text"] == "fine"
