"""What both clients do with httpx: its settings, and its errors and answers as ours."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from thoughtbubbles_client.errors import (
    DisconnectedError,
    InvalidAnswerError,
    NoAnswerError,
    ThoughtbubblesError,
    TimedOutError,
    UnreachableError,
)
from thoughtbubbles_client.reading import api_error
from thoughtbubbles_client.version import __version__

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where `thoughtbubbles serve` listens if not told otherwise."""
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0)
"""As long as a server lets a request take if not told otherwise; a connection is there at once or not at all."""

ERRORS: Mapping[type[httpx.RequestError], type[ThoughtbubblesError]] = {
    httpx.ConnectError: UnreachableError,
    httpx.ConnectTimeout: UnreachableError,
    httpx.ProxyError: UnreachableError,
    httpx.UnsupportedProtocol: UnreachableError,
    httpx.TimeoutException: TimedOutError,
    httpx.DecodingError: InvalidAnswerError,
    httpx.TooManyRedirects: InvalidAnswerError,
    httpx.TransportError: DisconnectedError,
}
"""httpx's errors and ours; the first that fits."""


def http_settings(url: str, api_key: str | None, timeout: float | httpx.Timeout) -> dict[str, Any]:
    """Arguments for either of httpx's clients. `ValueError` when `url` is no address or `api_key` no key."""
    try:
        parsed = httpx.URL(url.rstrip("/").removesuffix("/v1"))  # OpenAI's clients want it, and it gets copied
    except httpx.InvalidURL as error:
        raise ValueError(f"url {url!r} is no URL: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"url must be like {DEFAULT_URL}, not {url!r}")
    headers = {"user-agent": f"thoughtbubbles-client/{__version__}"}
    if api_key is not None:
        if not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key must be printable ASCII")  # httpx's own error would show it
        headers["authorization"] = f"Bearer {api_key}"
    return {"base_url": parsed, "headers": headers, "timeout": timeout}


@contextmanager
def translated() -> Iterator[None]:
    """Raise httpx's errors as ours: the only place where they are met."""
    try:
        yield
    except httpx.RequestError as error:
        ours = next((ours for theirs, ours in ERRORS.items() if isinstance(error, theirs)), NoAnswerError)
        raise ours(f"{error.request.url}: {str(error) or type(error).__name__}") from error


def is_stream(response: httpx.Response) -> bool:
    """Whether these are server-sent events of an answer, not yet read."""
    return response.is_success and response.headers.get("content-type", "").startswith("text/event-stream")


def check(response: httpx.Response, *, streamed: bool) -> None:
    """Raise the error of an answer that has been read: `ApiError`, or `InvalidAnswerError` for no stream."""
    if not response.is_success:
        raise api_error(response.content, response.status_code, response.headers, time.time())
    if streamed:
        kind = response.headers.get("content-type", "something without a type")
        raise InvalidAnswerError(f"a stream was asked for, but {kind} came")
