"""Turn a chat request into a plan: its conversation becomes the prompt of a completion, all else stays the same."""

from collections.abc import Iterable, Mapping

from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.errors import ApiError, bad_request
from thoughtbubbles.server.protocol.planning import Plan, plan
from thoughtbubbles.server.protocol.requests import MAX_TEXT_LENGTH, CompletionRequest, GenerationRequest

UNSUPPORTED_FIELDS: Mapping[str, object] = {
    "audio": None,
    "function_call": "none",
    "functions": [],
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "tools": [],
    "web_search_options": None,
}
"""OpenAI's fields for what this server does not support, each with the value that does not use it."""
UNSUPPORTED_MESSAGE_FIELDS = ("audio", "function_call", "tool_calls")
"""Fields of a message that are not text."""


def plan_chat(completion_id: str, request: ChatRequest, served: ServedModel) -> Plan:
    """Return the plan of `request`, checked against the model. Raises `ApiError` 400 or 404 for the first mistake."""
    _check_supported(request)
    completion = CompletionRequest.model_validate(
        {field: getattr(request, field) for field in GenerationRequest.model_fields}
        | {"prompt": (prompt := _prompt(request, served))}
        | {"max_tokens": _max_tokens(request, served.max_model_len - len(prompt)), "logprobs": _logprobs(request)}
    )
    try:
        return plan(completion_id, completion, served)
    except ApiError as error:
        if error.param != "prompt":
            raise
        raise bad_request(error.message.replace("'prompt'", "'messages'"), error.code, "messages") from None


def ignored(request: ChatRequest) -> Iterable[str]:
    """Return the names of the request's fields that the server does not know."""
    return [field for field in request.model_extra or () if field not in UNSUPPORTED_FIELDS]


def _check_supported(request: ChatRequest) -> None:
    extra = request.model_extra or {}
    used = [field for field, unused in UNSUPPORTED_FIELDS.items() if field in extra and extra[field] != unused]
    for number, message in enumerate(request.messages):
        fields = message.model_extra or {}
        used += [f"messages[{number}].{field}" for field in UNSUPPORTED_MESSAGE_FIELDS if fields.get(field)]
    if used:
        text = f"Unsupported parameter: {used[0]!r} is not supported with this model, which writes text alone."
        raise bad_request(text, "unsupported_parameter", used[0])


def _prompt(request: ChatRequest, served: ServedModel) -> list[int]:
    """Return the token ids of the conversation; the end-of-text token, which starts every text, if it has none."""
    if served.chat_template is None:
        raise bad_request(
            "This model's checkpoint has no chat template, so that it takes no messages: use /v1/completions.",
            "chat_template_missing",
            "messages",
        )
    messages = [message.for_template() for message in request.messages]
    length = sum(len(text) for message in messages for text in message.values())
    if length > MAX_TEXT_LENGTH:
        text = (
            f"Invalid 'messages': string too long. Expected at most {MAX_TEXT_LENGTH} characters, but got {length}"
            " instead."
        )
        raise bad_request(text, "string_above_max_length", "messages")
    try:
        ids = served.chat_template.encode(messages, served.tokenizer)
    except ValueError as error:
        raise bad_request(f"Invalid 'messages': {error}.", "invalid_value", "messages") from None
    return ids or [served.tokenizer.end_of_text]


def _max_tokens(request: ChatRequest, left: int) -> int:
    """Return the limit that the request gives by either name; without one, the `left` tokens of the context."""
    given = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(given) > 1:
        message = "Invalid 'max_tokens': it is the older name of 'max_completion_tokens', which says something else."
        raise bad_request(message, "invalid_value", "max_tokens")
    return next(iter(given), None) or max(left, 1)


def _logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs is not None and not request.logprobs:
        message = "Invalid 'top_logprobs': only allowed when 'logprobs' is true."
        raise bad_request(message, "invalid_value", "top_logprobs")
    return request.top_logprobs or 0 if request.logprobs else None
