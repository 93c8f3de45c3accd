"""Turn a chat request into a plan: its conversation becomes the prompt of a completion, all else stays the same."""

from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.errors import ApiError, bad_request
from thoughtbubbles.server.protocol.planning import Plan, plan
from thoughtbubbles.server.protocol.requests import MAX_TEXT_LENGTH, CompletionRequest, GenerationRequest
from thoughtbubbles.server.protocol.unsupported import check_supported


def plan_chat(completion_id: str, request: ChatRequest, served: ServedModel) -> Plan:
    """Return the plan of `request`, checked against the model. Raises `ApiError` 400 or 404 for the first mistake."""
    check_supported(request)
    completion = CompletionRequest.model_validate(
        {field: getattr(request, field) for field in GenerationRequest.model_fields}
        | {"prompt": (prompt := _prompt(request, served))}
        | {"max_tokens": _max_tokens(request, served.max_model_len - len(prompt)), "logprobs": _logprobs(request)}
    )
    try:
        return plan(completion_id, completion, served)
    except ApiError as error:
        name = _names(request).get(error.param or "")
        if name is None:
            raise
        raise bad_request(error.message.replace(f"'{error.param}'", f"'{name}'"), error.code, name) from None


def _names(request: ChatRequest) -> dict[str, str]:
    """Return the chat's names of fields that the completion has, where they differ."""
    newer = {"max_tokens": "max_completion_tokens"} if request.max_tokens is None else {}
    return {"prompt": "messages"} | newer


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
