"""docs/API.md lists every route, field, header and code, and its examples have the answers that it shows."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.server.harness import Running
from thoughtbubbles.server.app import EXPOSED_HEADERS
from thoughtbubbles.server.protocol.chat_requests import ChatRequest, Message
from thoughtbubbles.server.protocol.requests import (
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    LoadRequest,
    RequestBody,
    StreamOptions,
    TokenizeRequest,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "API.md").read_text(encoding="utf-8")
CURL = r"```\ncurl (?:-N )?http://127\.0\.0\.1:8000(\S+)(?: -d '([^\n]+)')?\n```\n\n```(json)?\n(.+?)\n```"
EXAMPLES = re.findall(CURL, PAGE, re.DOTALL)
GENERATED_CODES = {f"{kind}_{side}_value" for kind in ("integer", "decimal") for side in ("below_min", "above_max")}


def rows(heading: str) -> list[list[str]]:
    """The tables of the part under `heading`, a list of cells for each row."""
    part = re.split(r"^#+ ", PAGE, flags=re.MULTILINE)
    (text,) = (each for each in part if each.startswith(f"{heading}\n"))
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]


def default(body: type[BaseModel], name: str) -> str:
    field = body.model_fields[name]
    return "required" if field.is_required() else f"`{json.dumps(field.default)}`"


@pytest.mark.parametrize(
    ("heading", "bodies"),
    [
        ("Fields of every generation request", [GenerationRequest]),
        ("Completions", [CompletionRequest]),
        ("Chat", [ChatRequest, Message]),
        ("Tokens", [TokenizeRequest, DetokenizeRequest]),
        ("Load weights", [LoadRequest]),
    ],
)
def test_every_field_of_a_request_is_told_with_its_default(heading: str, bodies: list[type[RequestBody]]) -> None:
    told = {row[0].strip("`"): row[2] for row in rows(heading) if len(row) == 4}
    inherited = set() if bodies[0] is GenerationRequest else set(GenerationRequest.model_fields)
    expected = {name: default(body, name) for body in bodies for name in body.model_fields if name not in inherited}
    assert told == expected


def test_every_option_of_a_stream_is_told() -> None:
    told = {row[0].strip("`"): row[1] for row in rows("Streams")}
    assert told == {name: default(StreamOptions, name) for name in StreamOptions.model_fields}


def test_every_route_is_told(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    told = {row[0].strip("`") for row in rows("The API") if " " in row[0]}
    assert told == routes | {"GET /", "GET /openapi.json"}


def test_every_header_and_code_is_told() -> None:
    assert {row[0].strip("`") for row in rows("Headers")} == set(EXPOSED_HEADERS)
    told = {
        code for row in re.findall(r"^\| \d{3} \| (.+?) \|", PAGE, re.MULTILINE) for code in re.findall(r"`(\w+)`", row)
    }
    assert told >= set(codes()) | GENERATED_CODES


def codes() -> Iterator[str]:
    """Every code that the server's source spells out where it makes an error."""
    for path in (ROOT / "server").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                said = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
                said += call.args[1:2] if call.func.id in {"bad_request", "not_found"} else []
                said += call.args[:1] if call.func.id in {"unavailable", "UnavailableError"} else []
                yield from (
                    code.value for code in said if isinstance(code, ast.Constant) and isinstance(code.value, str)
                )


def keys(value: object) -> object:
    """Return the fields of an answer without their values; the fields of `top_logprobs` are tokens."""
    if isinstance(value, dict):
        return {name: keys(each) for name, each in value.items() if name != "top_logprobs"}
    return keys(value[0]) if isinstance(value, list) and value else None


def names(event: str) -> list[str]:
    """The fields of a server-sent event, in order."""
    return re.findall(r'"(\w+)":', event)


@pytest.mark.parametrize(("path", "body", "kind", "answer"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_the_examples_are_answered_as_the_page_says(
    server: Running, path: str, body: str, kind: str, answer: str
) -> None:
    response = server.client.post(path, content=body) if body else server.client.get(path)
    assert response.status_code == 200, response.text
    if kind == "json":
        assert keys(response.json()) == keys(json.loads(answer))
    else:
        shown, given = (text.strip().splitlines() for text in (answer, response.text))
        assert [names(shown[0]), shown[-1]] == [names(given[0]), given[-1]]


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) == PAGE.count("```\ncurl") > 7
