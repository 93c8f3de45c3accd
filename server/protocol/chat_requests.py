"""What clients may send to POST /v1/chat/completions, beside what any request to generate may say."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from thoughtbubbles.server.protocol.requests import INT64, GenerationRequest, RequestBody, Text


class TextPart(RequestBody):
    """A part of a message."""

    type: Literal["text"]
    """The model reads nothing else."""
    text: Text
    """What it says."""


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
    """Who speaks; `developer` is the newer name of `system`."""
    content: Content
    """What is said."""
    name: str | None = None
    """Of the speaker, for templates that tell several apart."""

    def for_template(self) -> dict[str, str]:
        """As chat templates know messages."""
        role = "system" if self.role == "developer" else self.role
        said = {"role": role, "content": "".join(part.text for part in self.content)}
        return said if self.name is None else said | {"name": self.name}


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    """The conversation so far."""
    max_completion_tokens: int | None = Field(None, ge=1, le=INT64 - 1)
    """Most tokens generated for each choice; nothing means as many as the context has left."""
    max_tokens: int | None = Field(None, ge=1, le=INT64 - 1)
    """The older name of `max_completion_tokens`."""
    logprobs: bool = False
    """Return log-probabilities of the tokens."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Of this many others at each place; only with `logprobs`."""
