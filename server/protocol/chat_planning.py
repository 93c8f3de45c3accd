"""A chat as the completion that answers it: the conversation becomes a prompt, all else is asked as it stands."""

from thoughtbubbles.server.bridge.loading import ServedModel
from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.errors import ApiError, bad_request
from thoughtbubbles.server.protocol.planning import Plan, plan
from thoughtbubbles.server.protocol.requests import LONGEST_TEXT, CompletionRequest, GenerationRequest
from thoughtbubbles.server.protocol.unsupported import check_supported, unsupported

NOT_SAID = ("audio", "function_call", "tool_calls")
"""Fields of a message that are not text."""


def plan_chat(name: str, request: ChatRequest, served: ServedModel) -> Plan:
    """Check `request` against the model and lay out its sequences. `ApiError` 400 or 404 for the first mistake."""
    check_supported(request)
    _check_messages(request)
    completion = CompletionRequest.model_validate(
        {field: getattr(request, field) for field in GenerationRequest.model_fields}
        | {"prompt": (prompt := _prompt(request, served))}
        | {"max_tokens": _max_tokens(request, served.max_model_len - len(prompt)), "logprobs": _logprobs(request)}
    )
    try:
        return plan(name, completion, served)
    except ApiError as error:
        if error.param != "prompt":
            raise
        raise bad_request(error.message.replace("'prompt'", "'messages'"), error.code, "messages") from None


def _check_messages(request: ChatRequest) -> None:
    for number, said in enumerate(request.messages):
        for field in NOT_SAID:
            if (said.model_extra or {}).get(field):
                raise unsupported(f"messages[{number}].{field}")


def _prompt(request: ChatRequest, served: ServedModel) -> list[int]:
    """Its token ids; a conversation that says nothing is the end-of-text token, which every text follows."""
    if served.chat_template is None:
        raise bad_request(
            "This model's checkpoint has no chat template, so that it takes no messages: use /v1/completions.",
            "chat_template_missing",
            "messages",
        )
    messages = [message.for_template() for message in request.messages]
    said = sum(len(text) for message in messages for text in message.values())
    if said > LONGEST_TEXT:
        text = (
            f"Invalid 'messages': string too long. Expected at most {LONGEST_TEXT} characters, but got {said} instead."
        )
        raise bad_request(text, "string_above_max_length", "messages")
    try:
        ids = served.chat_template.encode(messages, served.tokenizer)
    except ValueError as error:
        raise bad_request(f"Invalid 'messages': {error}.", "invalid_value", "messages") from None
    return ids or [served.tokenizer.end_of_text]


def _max_tokens(request: ChatRequest, left: int) -> int:
    """What was asked by either name, else all of the context that is `left`."""
    asked = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(asked) > 1:
        message = "Invalid 'max_tokens': it is the older name of 'max_completion_tokens', which says something else."
        raise bad_request(message, "invalid_value", "max_tokens")
    return next(iter(asked), None) or max(left, 1)


def _logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs is not None and not request.logprobs:
        message = "Invalid 'top_logprobs': only allowed when 'logprobs' is true."
        raise bad_request(message, "invalid_value", "top_logprobs")
    return request.top_logprobs or 0 if request.logprobs else None
