"""Fields that a request may not have, of OpenAI, vLLM and the other route: they are refused by name, not ignored."""

from collections.abc import Iterator, Mapping

from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.errors import ApiError, bad_request
from thoughtbubbles.server.protocol.requests import CompletionRequest, GenerationRequest, RequestBody

NEUTRAL: Mapping[str, object] = {
    "audio": None,
    "function_call": "none",
    "functions": [],
    "modalities": ["text"],
    "tool_choice": "none",
    "tools": [],
    "web_search_options": None,
}
"""Each field with the value that does not use its feature."""

OTHER_ANSWERS: Mapping[str, object] = {
    "add_generation_prompt": True,
    "allowed_token_ids": [],
    "bad_words": [],
    "chat_template": None,
    "continue_final_message": False,
    "documents": [],
    "prompt_logprobs": None,
    "return_tokens_as_token_ids": False,
    "truncate_prompt_tokens": None,
    "use_beam_search": False,
}
"""Fields of vLLM that change what is answered, each with the value that does not."""

OBJECTS = ("stream_options", "response_format", "json_schema", "structured_outputs", "fork_bias")
"""Fields that are objects or lists of objects. Messages are left out: there may be tens of thousands of them."""

INSTEAD: Mapping[str, str] = {
    "ebnf": "guided_grammar",
    "grammar": "guided_grammar",
    "json_schema": "guided_json",
    "regex": "guided_regex",
    "response_format.schema": "response_format.json_schema",
    "response_format.value": "guided_json",
    "structural_tag": "guided_grammar",
    "structured_outputs.structural_tag": "structured_outputs.grammar",
}
"""Fields that ask for a form of the text, each with the field of this server that does."""

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
OTHER_ROUTE: Mapping[type[GenerationRequest], Mapping[str, str]] = {
    CompletionRequest: {
        "messages": f"send it to {CHATS}, or use 'prompt'",
        "max_completion_tokens": "use 'max_tokens'",
        "top_logprobs": "use 'logprobs', a number",
    },
    ChatRequest: {
        "prompt": f"send it to {COMPLETIONS}, or use 'messages'",
        "best_of": f"send it to {COMPLETIONS}",
        "echo": f"send it to {COMPLETIONS}",
        "suffix": f"send it to {COMPLETIONS}",
    },
}
"""The fields that only the other route has, each with what to do instead: without them the answer would be another."""


def check_supported(request: GenerationRequest) -> None:
    """Raise `ApiError` 400 for the first field that uses such a feature."""
    others = OTHER_ROUTE[type(request)]
    for field, value in _unknown(request):
        if field in others and not (value is False or value == ""):
            raise _refused(field, f"is not a field of this route: {others[field]}")
        if field in INSTEAD:
            raise _refused(field, f"is not supported: use {INSTEAD[field]!r}")
        if value != OTHER_ANSWERS.get(field, value):
            raise _refused(field, "is not supported by this server, and without it the answer would be another")
        if value != NEUTRAL.get(field, value):
            raise unsupported(field)


def ignored(request: GenerationRequest) -> Iterator[str]:
    """Yield the names of the request's fields that have no effect, but for those inside `messages`."""
    return (field for field, _ in _unknown(request) if field not in NEUTRAL and field not in OTHER_ANSWERS)


def unsupported(field: str) -> ApiError:
    """Return the error of `field`, which is not text."""
    return _refused(field, "is not supported with this model, which writes text alone")


def _refused(field: str, reason: str) -> ApiError:
    return bad_request(f"Unsupported parameter: {field!r} {reason}.", "unsupported_parameter", field)


def _unknown(body: RequestBody, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield names and values of fields that the model of a body, or of an object in it, lacks."""
    for name, value in (body.model_extra or {}).items():
        yield f"{prefix}{name}", value
    for name in [name for name in OBJECTS if name in body.model_fields_set]:
        match getattr(body, name) if name in type(body).model_fields else None:
            case RequestBody() as inner:
                yield from _unknown(inner, f"{prefix}{name}.")
            case list() as entries:
                for number, entry in enumerate(entries):
                    yield from _unknown(entry, f"{prefix}{name}[{number}].")
