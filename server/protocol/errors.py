"""Every answer that is not a success, in OpenAI's form (API.md §4).

ApiError                    status, type, code and param of one answer
├── bad_request(…)          400, the client's mistake
├── invalid_http(…)         400, not a request that can be read
├── no_key()                401, no API key or a wrong one
├── not_found(…)            404, unknown model, path or completion
├── too_slow(…)             408, the body did not arrive in time
├── timed_out(…)            408, the answer was not done in time
├── too_large(…)            413
├── head_too_large(…)       431
├── queue_full(…)           429, with Retry-After
├── client_queue_full(…)    429, with Retry-After
├── unavailable(…)          503, with Retry-After
├── crowded(…)              503, with Retry-After: too many connections
├── cut_off()               503, the server stopped before the answer was done
├── cancelled()             499, ended through the cancel route
├── non_finite_logits()     500, the model's logits were NaN or infinite
└── engine_failed()         500, the last answer of this process
"""

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

REPEATED_INPUT = 200
"""Most characters of the client's own input that an error repeats."""
RETRY_SECONDS = 1
"""What a client is told to wait for a server that is starting or stopping."""

UNREAD = frozenset({"request_timeout", "request_too_large", "too_many_connections"})
"""Codes of answers after which the connection is closed: the body has not been read, or there are too many."""


class ApiError(Exception):
    """An answer that is not a success; raised anywhere on the way, written once by `answer`.

    `retry_after` in seconds; `useless` tells OpenAI's client not to send the same thing again; `refusal` says that it
    turns a request away, rather than ends one that was taken.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after: int | None = None,
        useless: bool = False,
        refusal: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.useless = useless
        self.refusal = refusal

    @property
    def body(self) -> dict[str, Any]:
        """The wire form, the same in an answer and in a stream."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """What a client needs to know about trying again, and whether the rest of its body will be read."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        headers |= {"x-should-retry": "false"} if self.useless else {}
        headers |= {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return headers | ({"connection": "close"} if self.code in UNREAD else {})


def clipped(text: str) -> str:
    """A client's own input as an error repeats it: never long."""
    return text if len(text) <= REPEATED_INPUT else text[: REPEATED_INPUT - 1] + "…"


def quoted(value: object) -> str:
    """A client's own input in quotes, its odd characters escaped; never long."""
    return clipped(repr(value))


def bad_request(message: str, code: str, param: str | None = None) -> ApiError:
    """The client's mistake: 400."""
    return ApiError(400, message, code=code, param=param)


def no_key() -> ApiError:
    """No API key, or a wrong one, where one is needed: 401."""
    message = "Incorrect API key provided. Send one that this server knows as 'Authorization: Bearer KEY'."
    return ApiError(401, message, code="invalid_api_key", useless=True)


def not_found(message: str, code: str, param: str | None = None) -> ApiError:
    """Something by a name that nothing has: 404."""
    return ApiError(404, message, code=code, param=param)


def too_slow(seconds: float) -> ApiError:
    """A body that did not arrive within `seconds`: 408."""
    return ApiError(408, f"The request body did not arrive within {seconds:g} seconds.", code="request_timeout")


def timed_out(seconds: float) -> ApiError:
    """An answer that was not done within `seconds`: 408. The same again would take as long, and the load is there."""
    message = f"The request took longer than the {seconds:g} seconds that this server allows."
    return ApiError(408, message, kind="server_error", code="timeout", useless=True, refusal=False)


def too_large(limit: int) -> ApiError:
    """A body above `limit` bytes: 413."""
    return ApiError(413, f"The request body is larger than the {limit} bytes that are read.", code="request_too_large")


def invalid_http(reason: str) -> ApiError:
    """Bytes that are no HTTP request, or a part of one that cannot be: 400."""
    return ApiError(400, f"{reason.rstrip('.')}.", code="invalid_http", useless=True)


def head_too_large(limit: int) -> ApiError:
    """A request line and headers above `limit` bytes: 431."""
    message = f"The request's head is larger than the {limit} bytes that are read."
    return ApiError(431, message, code="headers_too_large", useless=True)


def crowded(limit: int) -> ApiError:
    """More connections than `limit` are open: 503."""
    message = f"The server has {limit} open connections, and serves no more at a time."
    return ApiError(503, message, kind="server_error", code="too_many_connections", retry_after=RETRY_SECONDS)


def queue_full(message: str, retry_after: int) -> ApiError:
    """As many wait as may: 429, to come back in `retry_after` seconds."""
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=retry_after)


def client_queue_full(message: str, retry_after: int) -> ApiError:
    """As many of this client's requests wait as may: 429, to come back in `retry_after` seconds."""
    return ApiError(429, message, kind="rate_limit_error", code="client_queue_full", retry_after=retry_after)


def unavailable(reason: str, *, refusal: bool = True) -> ApiError:
    """No request is taken at present, for `reason` (one word, which is also the code): 503."""
    message = f"The server takes no request at present: it is {reason}."
    return ApiError(503, message, kind="server_error", code=reason, retry_after=RETRY_SECONDS, refusal=refusal)


def cut_off() -> ApiError:
    """The server stops and waits no longer for the answer: 503."""
    message = "The server stopped before the answer was done."
    return ApiError(503, message, kind="server_error", code="draining", retry_after=RETRY_SECONDS, refusal=False)


def cancelled() -> ApiError:
    """What a request's own client sees when another call cancels it."""
    return ApiError(499, "The request was cancelled.", code="cancelled", useless=True, refusal=False)


def non_finite_logits() -> ApiError:
    """Logits that no token can be drawn from: 500. They would be the same for the same prompt."""
    message = "The model's logits for this request are NaN or infinite, so that it was ended."
    return ApiError(500, message, kind="server_error", code="non_finite_logits", useless=True, refusal=False)


def engine_failed() -> ApiError:
    """The engine raised: this process answers nothing more, and ends."""
    message = "The engine failed; the server is going down."
    return ApiError(500, message, kind="server_error", code="engine_failed", useless=True, refusal=False)


def answer(error: ApiError) -> JSONResponse:
    """The response that carries `error`."""
    return JSONResponse(error.body, error.status, error.headers)


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for `ApiError`."""
    assert isinstance(error, ApiError)
    if error.refusal:
        request.app.state.service.metrics.rejected.labels(reason=error.code).inc()
    return answer(error)


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for what the router itself refuses: an unknown path, or a method a path does not have."""
    assert isinstance(error, HTTPException)
    route = clipped(f"{request.method} {request.url.path}")
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return JSONResponse(
        ApiError(error.status_code, f"{route} is not a route of this server.", code=code).body,
        error.status_code,
        error.headers,
    )


async def on_unexpected(_request: Request, _error: Exception) -> JSONResponse:
    """Exception handler for our own mistakes: the client learns that, and no more."""
    message = "The server met an unexpected condition."
    return answer(ApiError(500, message, kind="server_error", code="internal_error", useless=True))
