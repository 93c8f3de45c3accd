"""The document of GET /openapi.json: the body that each route takes, and every answer it may give.

FastAPI knows neither: bodies are parsed in `server.protocol.validation`, and errors are raised as `ApiError`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.requests import (
    CompletionRequest,
    DetokenizeRequest,
    Json,
    LoadRequest,
    RequestBody,
    TokenizeRequest,
)

REFERENCE = "#/components/schemas/{model}"
BEARER = "ApiKey"
ADMIN_BEARER = "AdminKey"
"""The names of the security schemes in the document."""
Responses = dict[int | str, dict[str, Any]]

BODIES = (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest, LoadRequest)
"""The bodies of all routes."""
STREAMED: Responses = {200: {"content": {"text/event-stream": {}}}}
"""The `responses` of a route that may also answer in server-sent events."""

MEANINGS: Mapping[int, str] = {
    400: "The request has a mistake",
    401: "The server requires a key, and the request has none or a wrong one",
    403: "The server has no admin keys",
    404: "Nothing has this name",
    408: "The body did not arrive in time, or the answer was not complete in time",
    409: "Another load is in progress",
    413: "The body is larger than the server reads",
    415: "The body is compressed",
    429: "The queue is full",
    499: "Ended through the cancel route",
    500: "The server made a mistake, or its engine failed",
    503: "The server cannot serve requests now",
}


class ErrorDetail(BaseModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def refusals(*statuses: int) -> Responses:
    """Return the `responses` of a route that may answer with these errors."""
    return {status: {"model": ErrorBody, "description": MEANINGS[status]} for status in statuses}


def takes(body: type[RequestBody]) -> Json:
    """Return the `openapi_extra` of a route that takes this body."""
    schema = {"$ref": REFERENCE.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class DescribedApp(FastAPI):
    """A FastAPI whose document also has the bodies, errors and keys that FastAPI does not know."""

    def __init__(self, *, schemes: Collection[str], **settings: Any) -> None:  # noqa: ANN401
        """`schemes` are those of `BEARER` and `ADMIN_BEARER` that the server has keys of."""
        super().__init__(**settings)
        self._schemes = schemes

    def openapi(self) -> Json:
        """Return the document, which is made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _complete(document)
            for scheme in self._schemes:
                _declare_bearer(document, scheme)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _complete(document: Json) -> None:
    """Add the bodies, and remove FastAPI's own 422, which no route answers."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    bodies: list[tuple[type[RequestBody], Any]] = [(body, "validation") for body in BODIES]
    _, made = models_json_schema(bodies, ref_template=REFERENCE)
    for name, schema in made["$defs"].items():
        schemas[name] = _null_is_absent(schema)


def _declare_bearer(document: Json, scheme: str) -> None:
    """Declare a bearer scheme, and require it for every operation that may answer 401 and needs a key of its kind."""
    document["components"].setdefault("securitySchemes", {})[scheme] = {"type": "http", "scheme": "bearer"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if "401" in operation["responses"] and path.startswith("/admin/") == (scheme == ADMIN_BEARER):
                operation["security"] = [{scheme: []}]


def _null_is_absent(schema: Json) -> Json:
    """Return the schema of an object, with null allowed for all optional fields."""
    required = schema.get("required", ())
    fields = schema["properties"].items()
    return {**schema, "properties": {name: each if name in required else _or_null(each) for name, each in fields}}


def _or_null(schema: Json) -> Json:
    null = {"type": "null"}
    return schema if null in schema.get("anyOf", ()) else {"anyOf": [schema, null]}
