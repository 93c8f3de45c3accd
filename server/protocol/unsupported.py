"""Fields of OpenAI and vLLM for features that this server lacks: they are refused by name, not ignored."""

from collections.abc import Iterable, Mapping

from thoughtbubbles.server.protocol.errors import ApiError, bad_request
from thoughtbubbles.server.protocol.requests import GenerationRequest

NEUTRAL: Mapping[str, object] = {
    "audio": None,
    "function_call": "none",
    "functions": [],
    "grammar": None,
    "json_schema": None,
    "modalities": ["text"],
    "tool_choice": "none",
    "tools": [],
    "web_search_options": None,
}
"""Each field with the value that does not use its feature."""


def check_supported(request: GenerationRequest) -> None:
    """Raise `ApiError` 400 for the first field that uses such a feature."""
    extra = request.model_extra or {}
    for field, neutral in NEUTRAL.items():
        if field in extra and extra[field] != neutral:
            raise unsupported(field)


def ignored(request: GenerationRequest) -> Iterable[str]:
    """Return the names of the request's fields that have no effect."""
    return [field for field in request.model_extra or () if field not in NEUTRAL]


def unsupported(field: str) -> ApiError:
    """Return the error of `field`."""
    message = f"Unsupported parameter: {field!r} is not supported with this model, which writes text alone."
    return bad_request(message, "unsupported_parameter", field)
