"""The grammar that a request's text must match, from the fields of OpenAI and vLLM (API.md, structured output)."""

from collections.abc import Callable, Iterator, Sequence

from pydantic_core import from_json

from thoughtbubbles.engine import Grammar, InvalidRequest, check_grammar
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.server.protocol.errors import ApiError, bad_request
from thoughtbubbles.server.protocol.requests import GenerationRequest, JsonSchema, ResponseFormat

Wanted = tuple[str, Callable[[str], Grammar]]
"""A field that asks for a grammar, and what makes the grammar from the field's name."""


def grammar_of(request: GenerationRequest) -> Grammar | None:
    """Return what the text must match, or None. Raises `ApiError` 400 if fields contradict or have a mistake."""
    wanted = list(_wanted(request))
    if not wanted:
        return None
    name, make = wanted[0]
    if len(wanted) > 1:
        message = f"Invalid {wanted[1][0]!r}: the text is constrained by {name!r} already."
        raise bad_request(message, "invalid_value", wanted[1][0])
    if request.ignore_eos:
        message = f"Invalid 'ignore_eos': not allowed with {name!r}, whose text ends the completion."
        raise bad_request(message, "invalid_value", "ignore_eos")
    try:
        return make(name)
    except InvalidRequest as error:
        raise bad_request(f"{error}.", error.code, error.param) from None


def require_usable(grammar: Grammar, tokenizer: Tokenizer) -> None:
    """Compile a grammar, which may take seconds. Raises `ApiError` 400 if it has a mistake or cannot be served."""
    try:
        check_grammar(grammar, tokenizer)
    except InvalidRequest as error:
        if error.code == "missing_extra":
            raise _missing_extra(grammar.param) from None
        raise bad_request(f"{error}.", error.code, error.param) from None


def is_constrained(request: GenerationRequest) -> bool:
    """Return whether a request asks for a grammar."""
    return any(True for _ in _wanted(request))


def _wanted(request: GenerationRequest) -> Iterator[Wanted]:
    if (form := request.response_format) is not None:
        _check(form)
        if form.type != "text":
            yield "response_format", _any_object if form.json_schema is None else _of_schema(form.json_schema)
    yield from _fields(
        "guided_", request.guided_json, request.guided_regex, request.guided_choice, request.guided_grammar
    )
    if (outputs := request.structured_outputs) is not None:
        yield from _fields("structured_outputs.", outputs.json_text, outputs.regex, outputs.choice, outputs.grammar)
        if outputs.json_object:
            yield "structured_outputs.json_object", _any_object


def _fields(
    prefix: str, schema: object, regex: str | None, choices: Sequence[str] | None, grammar: str | None
) -> Iterator[Wanted]:
    if schema is not None:
        yield f"{prefix}json", lambda name: Grammar.json(_parsed(name, schema), name)
    if regex is not None:
        yield f"{prefix}regex", lambda name: Grammar(kind="regex", text=regex, param=name)
    if choices is not None:
        yield f"{prefix}choice", lambda name: Grammar.choice(choices, name)
    if grammar is not None:
        yield f"{prefix}grammar", lambda name: Grammar(kind="grammar", text=grammar, param=name)


def _check(form: ResponseFormat) -> None:
    """Raise `ApiError` 400 unless the form has a schema if and only if its type is `json_schema`."""
    name = "response_format.json_schema"
    if form.type == "json_schema" and form.json_schema is None:
        raise bad_request(f"Missing required parameter: {name!r}.", "missing_required_parameter", name)
    if form.type != "json_schema" and form.json_schema is not None:
        message = f"Invalid {name!r}: only allowed when 'response_format.type' is 'json_schema'."
        raise bad_request(message, "invalid_value", name)


def _of_schema(given: JsonSchema) -> Callable[[str], Grammar]:
    return lambda name: Grammar.json(given.json_schema, name)


def _any_object(name: str) -> Grammar:
    return Grammar.json({"type": "object"}, name)


def _parsed(name: str, schema: object) -> object:
    """Return a schema, which a client may also send as JSON in a string."""
    if not isinstance(schema, str):
        return schema
    try:
        return from_json(schema)
    except ValueError as error:
        raise bad_request(f"Invalid {name!r}: it is not JSON: {error}.", "invalid_value", name) from None


def _missing_extra(name: str) -> ApiError:
    message = f"Unsupported parameter: {name!r} needs the extra 'structured', which this server is installed without."
    return bad_request(message, "unsupported_parameter", name)
