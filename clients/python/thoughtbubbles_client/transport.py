"""What both clients do with httpx: its settings, and the conversion of its errors."""

import math
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
"""The default address of `thoughtbubbles serve`."""
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0, pool=None)
"""The default time limit of a request on the server; connecting takes less."""
LIMITS = httpx.Limits(max_connections=500, max_keepalive_connections=20)
"""Connections of a client; more requests wait for one. 500 are half of what a server has by default, and few enough for
a process that may open 1024 files. httpx's pool tries each idle one for every request, so that more than 20 cost."""

LONGEST_SECONDS = 2_000_000.0
"""A longer time limit is none: Python gives `poll` milliseconds in 31 bits, so that a longer one may become short."""

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
"""Our error for each of httpx's; the first match counts."""


def http_settings(url: str, api_key: str | None, timeout: float | httpx.Timeout | None) -> dict[str, Any]:
    """Return arguments for either of httpx's clients.

    Raises `ValueError` for a wrong `url`, `api_key` or `timeout`, and `TypeError` for a `timeout` of another type.
    """
    try:
        parsed = httpx.URL(url.rstrip("/").removesuffix("/v1"))  # OpenAI's clients need it, and users copy it
    except httpx.InvalidURL as error:
        raise ValueError(f"url {url!r} is not a URL: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"url must be like {DEFAULT_URL}, not {url!r}")
    headers = {"user-agent": f"thoughtbubbles-client/{__version__}"}
    headers |= {} if api_key is None else authorization(api_key, "api_key")
    limits = time_limits(math.inf if timeout is None else timeout)
    return {"base_url": parsed, "headers": headers, "timeout": limits, "limits": LIMITS}


def time_limits(timeout: float | httpx.Timeout) -> httpx.Timeout:
    """Return time limits of a request. A number limits no wait for a connection that the client's others still use.

    Raises `ValueError` or `TypeError` for what is no time, where httpx would fail in the request.
    """
    if isinstance(timeout, httpx.Timeout):
        return timeout
    if not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds, inf for no limit, or an httpx.Timeout, not {timeout!r}")
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, not {timeout}")
    return httpx.Timeout(timeout if timeout <= LONGEST_SECONDS else None, pool=None)


def authorization(key: str, name: str) -> dict[str, str]:
    """Return the header with a key. Raises `ValueError`, which calls it `name`, if no header can have it."""
    if not (key.isascii() and key.isprintable() and key and key == key.strip()):
        raise ValueError(f"{name} must be printable ASCII, not empty, without spaces around it")  # httpx would show it
    return {"authorization": f"Bearer {key}"}


@contextmanager
def translated() -> Iterator[None]:
    """Inside the block, raise httpx's errors as ours."""
    try:
        yield
    except httpx.RequestError as error:
        ours = next((ours for theirs, ours in ERRORS.items() if isinstance(error, theirs)), NoAnswerError)
        raise ours(f"{error.request.url}: {str(error) or type(error).__name__}") from error


def is_stream(response: httpx.Response) -> bool:
    """Return whether the response is a successful stream of server-sent events."""
    return response.is_success and response.headers.get("content-type", "").startswith("text/event-stream")


def check(response: httpx.Response, *, streamed: bool) -> None:
    """Raise the error of a response that has been read: `ApiError`, or `InvalidAnswerError` if it is not a stream."""
    if not response.is_success:
        raise api_error(response.content, response.status_code, response.headers, time.time())
    if streamed:
        kind = response.headers.get("content-type", "no content type")
        raise InvalidAnswerError(f"expected a stream, but got {kind}")
