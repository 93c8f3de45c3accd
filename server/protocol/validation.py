"""Parse a body into a typed request, and turn a client's mistake into an error message (API.md §4)."""

import codecs
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from thoughtbubbles.server.protocol.body_size import check_size
from thoughtbubbles.server.protocol.errors import ApiError, bad_request, clipped, quoted
from thoughtbubbles.server.protocol.requests import Json, RequestBody
from thoughtbubbles.server.protocol.unsupported import unsupported

Body = TypeVar("Body", bound=RequestBody)

JSON_NAMES: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
    type(None): "null",
}

EXPECTED: Mapping[str, str] = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a decimal",
    "finite_number": "a finite decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "schema_type": "an object or a boolean",
    "schema_text_type": "an object, a boolean, or either as JSON in a string",
    "content_type": "a string or an array of text parts",
    "union_tag_not_found": "a string, an array of strings, an array of token ids, or an array of arrays of token ids",
}

RELATIONS: Mapping[str, tuple[str, str, str]] = {
    "less_than_equal": ("le", "above maximum value", "<="),
    "greater_than_equal": ("ge", "below minimum value", ">="),
    "greater_than": ("gt", "below minimum value", ">"),
}

HALF_A_PAIR = re.compile("unexpected end of hex escape|lone leading surrogate in hex escape")
r"""What the parser calls an escape such as \ud83d without its other half."""

PROMPT_FORMS = frozenset({"text", "texts", "ids", "batch"})
"""Tags of the prompt's union, which are part of pydantic's location; clients do not know them."""


def parse(body: bytes, schema: type[Body]) -> Body:
    """Return `body` parsed as `schema`; it may start with a byte order mark.

    Raises `ApiError` 400 for the first mistake, 413 for too many values.
    """
    return validate(parse_object(body.removeprefix(codecs.BOM_UTF8)), schema)


def parse_object(text: bytes, name: str = "The body") -> Json:
    """Return the JSON object `text`, which errors call `name`. Raises `ApiError` 400, or 413 for too many values."""
    check_size(text)
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        problem = HALF_A_PAIR.sub("half a surrogate pair, as of an emoji that was cut,", str(error))
        raise bad_request(f"{name} is not valid JSON: {problem}.", "invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request(f"{name} must be a JSON object, but is {_json_name(value)}.", "invalid_json")
    return value


def validate(value: Json, schema: type[Body]) -> Body:
    """Return a JSON object as `schema`. Raises `ApiError` 400 for the first mistake."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _translated(error.errors(include_url=False)[0]) from None


def below_minimum(name: str, minimum: float, got: float) -> ApiError:
    """Return the error of a field `name` that is below its minimum."""
    return _out_of_range(name, "below minimum value", ">=", minimum, got)


def above_maximum(name: str, maximum: float, got: float) -> ApiError:
    """Return the error of a field `name` that is above its maximum."""
    return _out_of_range(name, "above maximum value", "<=", maximum, got)


def _translated(error: ErrorDetails) -> ApiError:
    """Return one of pydantic's errors with the message and code of API.md."""
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    name = _field_name(error["loc"])
    if kind in RELATIONS:
        bound, problem, relation = RELATIONS[kind]
        return _out_of_range(name, problem, relation, context[bound], given)
    if kind in EXPECTED:
        message = f"Invalid type for {quoted(name)}: expected {EXPECTED[kind]}, but got {_json_name(given)} instead."
        return bad_request(message, "invalid_type", name)
    if kind == "not_text":
        return unsupported(f"{name}.{context['field']}")
    return _other_error(kind, name, context, given)


def _other_error(kind: str, name: str, context: Mapping[str, Any], given: object) -> ApiError:
    match kind:
        case "missing":
            return bad_request(f"Missing required parameter: {quoted(name)}.", "missing_required_parameter", name)
        case "too_long":
            wanted, got = context["max_length"], context["actual_length"]
            message = (
                f"Invalid {quoted(name)}: array too long. Expected at most {wanted} elements, but got {got} instead."
            )
            return bad_request(message, "array_above_max_length", name)
        case "too_short":
            return bad_request(f"Invalid {quoted(name)}: expected at least one element.", "empty_array", name)
        case "string_too_long":
            wanted, got = context["max_length"], len(given) if isinstance(given, str) else "more"
            message = (
                f"Invalid {quoted(name)}: string too long. Expected at most {wanted} characters, but got {got} instead."
            )
            return bad_request(message, "string_above_max_length", name)
        case "string_too_short":
            return bad_request(f"Invalid {quoted(name)}: expected at least one character.", "empty_string", name)
        case _:
            expected = context.get("expected", "another value")
            message = f"Invalid value for {quoted(name)}: {quoted(given)}. Expected {expected}."
            return bad_request(message, "invalid_value", name)


def _out_of_range(name: str, problem: str, relation: str, bound: float, got: float) -> ApiError:
    number = "integer" if isinstance(bound, int) else "decimal"
    code = f"{number}_{problem.replace(' ', '_').replace('maximum', 'max').replace('minimum', 'min')}"
    expected = f"Expected a value {relation} {_number(bound)}, but got {_number(got)} instead."
    return bad_request(f"Invalid {quoted(name)}: {number} {problem}. {expected}", code, name)


def _number(value: float) -> str:
    return clipped(str(value).removesuffix(".0"))


def _field_name(location: tuple[int | str, ...]) -> str:
    """Return the field at pydantic's location as clients write it: `stream_options.include_usage`, `prompt[2][0]`."""
    first, *rest = location
    inner = rest[1:] if first == "prompt" and rest and rest[0] in PROMPT_FORMS else rest
    return clipped("".join([str(first), *(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner)]))


def _json_name(value: object) -> str:
    return JSON_NAMES.get(type(value), "something else")
