"""The body of POST /v1/chat/completions: its fields beside those of every generation request (API.md §5)."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from thoughtbubbles.server.protocol.requests import INT64, GenerationRequest, RequestBody, Text

NOT_TEXT = ("audio", "function_call", "tool_calls")
"""Fields of a message that are not text. OpenAI's clients send null as the content beside them."""


class TextPart(RequestBody):
    """One part of a message."""

    type: Literal["text"]
    """The only kind that the model reads."""
    text: Text
    """Its text."""


def _parts(value: object) -> object:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content_type", "neither a string nor an array")
    return value


Parts = Annotated[list[TextPart], Field(fail_fast=True)]
Content = Annotated[Parts, BeforeValidator(_parts, json_schema_input_type=Text | Parts)]


class Message(RequestBody):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """The speaker's role; `developer` is the newer name of `system`."""
    content: Content
    """The message's text, or its parts."""
    name: str | None = None
    """The speaker's name, for templates that use it."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, message: object) -> object:
        if isinstance(message, dict):
            for field in NOT_TEXT:
                if message.get(field):
                    raise PydanticCustomError("not_text", "not text", {"field": field})
        return message

    def for_template(self) -> dict[str, str]:
        """Return the message in the form that chat templates use."""
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": "".join(part.text for part in self.content)}
        return message if self.name is None else message | {"name": self.name}


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    """The conversation so far."""
    max_completion_tokens: int | None = Field(None, ge=1, le=INT64 - 1)
    """Most tokens generated for each choice; by default as many as the context has left."""
    max_tokens: int | None = Field(None, ge=1, le=INT64 - 1)
    """The older name of `max_completion_tokens`."""
    logprobs: bool = False
    """Return log-probabilities of the tokens."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Return log-probabilities of this many most likely tokens at each position; only with `logprobs`."""
