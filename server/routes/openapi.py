"""What GET /openapi.json says: the body that each route takes, and every answer it may give.

FastAPI sees neither by itself: bodies are read in `server.protocol.validation`, and refusals are raised as `ApiError`.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.requests import (
    CompletionRequest,
    DetokenizeRequest,
    Json,
    RequestBody,
    TokenizeRequest,
)

REFERENCE = "#/components/schemas/{model}"
BEARER = "ApiKey"
"""The name of the security scheme in the document."""
Responses = dict[int | str, dict[str, Any]]

STREAMED: Responses = {200: {"content": {"text/event-stream": {}}}}
"""A route's `responses`: it may also answer in server-sent events."""

MEANINGS: Mapping[int, str] = {
    400: "A mistake in the request",
    401: "No API key, or a wrong one, where keys are set",
    404: "Nothing has this name",
    408: "The body did not arrive in time, or the answer was not done in time",
    413: "The body is larger than the server reads",
    429: "As many requests wait as may",
    499: "Ended through the cancel route",
    500: "The server's own mistake, or its engine failed",
    503: "Nothing can be served at present",
}


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


def refusals(*statuses: int) -> Responses:
    """A route's `responses`: it may answer with these errors."""
    return {status: {"model": ErrorBody, "description": MEANINGS[status]} for status in statuses}


def takes(body: type[RequestBody]) -> Json:
    """A route's `openapi_extra`: it takes this body."""
    schema = {"$ref": REFERENCE.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class DescribedApp(FastAPI):
    """A FastAPI whose document also has the bodies, refusals and keys that FastAPI does not see."""

    def __init__(self, *, needs_key: bool, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(**settings)
        self._needs_key = needs_key

    def openapi(self) -> Json:
        """The document; made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _complete(document)
            if self._needs_key:
                _declare_bearer(document)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _complete(document: Json) -> None:
    """Put the bodies in, and take FastAPI's own 422 out, which no route answers."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    bodies: list[tuple[type[RequestBody], Any]] = [
        (body, "validation") for body in (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)
    ]
    _, made = models_json_schema(bodies, ref_template=REFERENCE)
    for name, schema in made["$defs"].items():
        schemas[name] = _null_is_absent(schema)


def _declare_bearer(document: Json) -> None:
    """Declare the bearer scheme, and require it of every operation that answers 401 without a key."""
    document["components"]["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer"}}
    for operations in document["paths"].values():
        for operation in operations.values():
            if "401" in operation["responses"]:
                operation["security"] = [{BEARER: []}]


def _null_is_absent(schema: Json) -> Json:
    """The schema of an object whose optional fields may all be null."""
    required = schema.get("required", ())
    fields = schema["properties"].items()
    return {**schema, "properties": {name: each if name in required else _or_null(each) for name, each in fields}}


def _or_null(schema: Json) -> Json:
    null = {"type": "null"}
    return schema if null in schema.get("anyOf", ()) else {"anyOf": [schema, null]}
