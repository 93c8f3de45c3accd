"""Every answer that is not a success, in OpenAI's form (API.md §4). HTTP statuses of errors are given here alone."""

from typing import Any

from fastapi.responses import JSONResponse

MAX_QUOTED_LENGTH = 200
"""Most characters of the client's own input that an error repeats."""
MAX_REASON_LENGTH = 1000
"""Most characters of the reason why a checkpoint is refused, which quotes names from its files."""
RETRY_SECONDS = 1
"""The Retry-After of a server that is starting or stopping."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status of a request whose client disconnected; nobody receives it."""
CLOSING_CODES = frozenset({"request_timeout", "request_too_large", "too_many_connections"})
"""Codes of answers that close the connection: the body has not been read, or there are too many connections."""


class ApiError(Exception):
    """An answer that is not a success. Raise it anywhere; `answer` makes the response.

    `retry_after` is in seconds. `useless` asks OpenAI's client not to retry. `refusal` is False if the error ends a
    request that was accepted.
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
        """The JSON of the error, the same in an answer and in a stream."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that tell a client whether to retry, and whether the connection is closed."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        headers |= {"x-should-retry": "false"} if self.useless else {}
        headers |= {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return headers | ({"connection": "close"} if self.code in CLOSING_CODES else {})


def clipped(text: str, length: int = MAX_QUOTED_LENGTH) -> str:
    """Return a client's input, shortened for an error to at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def quoted(value: object) -> str:
    """Return a client's input in quotes, with odd characters escaped, shortened for an error."""
    return clipped(repr(value))


def bad_request(message: str, code: str, param: str | None = None) -> ApiError:
    """Return 400: the client made a mistake."""
    return ApiError(400, message, code=code, param=param)


def grammar_failed(reason: str) -> ApiError:
    """Return 400: the grammar of a request became too complex, for `reason`, after some tokens."""
    message = f"The grammar of this request became too complex, so that it was ended: {reason}"
    return ApiError(400, message, code="grammar_too_complex", useless=True, refusal=False)


def invalid_http(reason: str) -> ApiError:
    """Return 400: the bytes are not an HTTP request, for `reason`."""
    return ApiError(400, f"{reason.rstrip('.')}.", code="invalid_http", useless=True)


def no_key() -> ApiError:
    """Return 401: the request needs an API key, and has none or a wrong one."""
    message = "Incorrect API key provided. Send one that this server knows as 'Authorization: Bearer KEY'."
    return ApiError(401, message, code="invalid_api_key", useless=True)


def no_admin_key() -> ApiError:
    """Return 401: the request needs an admin key, and has none or a wrong one. An API key is none."""
    message = "Incorrect admin key provided. Send one that this server knows as 'Authorization: Bearer KEY'."
    return ApiError(401, message, code="invalid_admin_key", useless=True)


def no_administration() -> ApiError:
    """Return 403: the server has no admin keys."""
    message = "This server has no admin keys, so that it cannot be administered: start it with admin_keys_file."
    return ApiError(403, message, code="admin_disabled", kind="invalid_request_error", useless=True)


def not_found(message: str, code: str, param: str | None = None) -> ApiError:
    """Return 404: nothing has the given name."""
    return ApiError(404, message, code=code, param=param)


def no_model(name: str, served: str) -> ApiError:
    """Return 404: the server has no model `name`, but `served`."""
    message = f"The model {quoted(name)} does not exist; this server has {quoted(served)}."
    return not_found(message, "model_not_found", "model")


def no_route(status: int, route: str) -> ApiError:
    """Return the router's own `status`: 404 for an unknown path, 405 for a method that a path does not have."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    return ApiError(status, f"{clipped(route)} is not a route of this server.", code=code)


def too_slow(seconds: float) -> ApiError:
    """Return 408: the body did not arrive within `seconds`."""
    return ApiError(408, f"The request body did not arrive within {seconds:g} seconds.", code="request_timeout")


def timed_out(seconds: float) -> ApiError:
    """Return 408: the answer was not complete within `seconds`. The same request would take as long again."""
    message = f"The request took longer than the {seconds:g} seconds that this server allows."
    return ApiError(408, message, kind="server_error", code="timeout", useless=True, refusal=False)


def too_large(limit: int) -> ApiError:
    """Return 413: the body has more than `limit` bytes."""
    return ApiError(413, f"The request body is larger than the {limit} bytes that are read.", code="request_too_large")


def unsupported_encoding(encoding: str) -> ApiError:
    """Return 415: the body has the Content-Encoding `encoding`, and none is decoded."""
    message = f"Content-Encoding {quoted(encoding)} is not supported: send the body uncompressed, without this header."
    return ApiError(415, message, code="unsupported_content_encoding", useless=True)


def too_many_values(values: int, nested: int) -> ApiError:
    """Return 413: the body has more than `values` values, or more than `nested` strings, arrays and objects."""
    message = f"The body holds more than {values} values, or {nested} strings, arrays and objects."
    return ApiError(413, message, code="request_too_large")


def queue_full(message: str, retry_after: int) -> ApiError:
    """Return 429: the queue is full; retry after `retry_after` seconds."""
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=retry_after)


def client_queue_full(message: str, retry_after: int) -> ApiError:
    """Return 429: this client's share of the queue is full; retry after `retry_after` seconds."""
    return ApiError(429, message, kind="rate_limit_error", code="client_queue_full", retry_after=retry_after)


def load_refused(reason: str) -> ApiError:
    """Return 400: the checkpoint cannot be loaded, for `reason`; nothing was paused."""
    return ApiError(
        400, f"The weights were not replaced: {clipped(reason, MAX_REASON_LENGTH)}.", code="checkpoint_refused",
        param="checkpoint", useless=True,
    )  # fmt: skip


def load_in_progress() -> ApiError:
    """Return 409: the weights of another checkpoint are being loaded."""
    message = "The weights of another checkpoint are being loaded; wait until they are served."
    return ApiError(409, message, code="load_in_progress")


def load_timed_out(seconds: float) -> ApiError:
    """Return 408: the weights could not be replaced, since requests ran for longer than `seconds`."""
    message = (
        f"The weights were not replaced: requests that ran did not finish within {seconds:g} seconds"
        " (load_wait_seconds), and others wait no longer. The weights from before are served."
    )
    return ApiError(408, message, kind="server_error", code="load_timeout", useless=True)


def load_failed(reason: str) -> ApiError:
    """Return 500: the weights could not be replaced, for `reason`; the ones from before are served."""
    message = f"The weights were not replaced, and the ones from before are served: {reason}."
    return ApiError(500, message, kind="server_error", code="load_failed", useless=True)


def head_too_large(limit: int) -> ApiError:
    """Return 431: request line and headers have more than `limit` bytes."""
    message = f"The request's head is larger than the {limit} bytes that are read."
    return ApiError(431, message, code="headers_too_large", useless=True)


def cancelled() -> ApiError:
    """Return 499: another call cancelled the request."""
    return ApiError(499, "The request was cancelled.", code="cancelled", useless=True, refusal=False)


def engine_failed() -> ApiError:
    """Return 500: the engine failed, and this process ends."""
    message = "The engine failed; the server is going down."
    return ApiError(500, message, kind="server_error", code="engine_failed", useless=True, refusal=False)


def internal_error() -> ApiError:
    """Return 500: the server made a mistake. The client gets no details."""
    message = "The server met an unexpected condition."
    return ApiError(500, message, kind="server_error", code="internal_error", useless=True)


def non_finite_logits() -> ApiError:
    """Return 500: the logits are NaN or infinite. The same prompt would have the same logits."""
    message = "The model's logits for this request are NaN or infinite, so that it was ended."
    return ApiError(500, message, kind="server_error", code="non_finite_logits", useless=True, refusal=False)


def unavailable(reason: str, *, refusal: bool = True) -> ApiError:
    """Return 503: the server accepts no requests, for `reason` (one word, also the code)."""
    message = f"The server takes no request at present: it is {reason}."
    return ApiError(503, message, kind="server_error", code=reason, retry_after=RETRY_SECONDS, refusal=refusal)


def too_many_connections(limit: int) -> ApiError:
    """Return 503: more than `limit` connections are open."""
    message = f"{limit} connections are open, and no more are served at a time."
    return ApiError(503, message, kind="server_error", code="too_many_connections", retry_after=RETRY_SECONDS)


def cut_off() -> ApiError:
    """Return 503: the server stopped before the answer was complete."""
    message = "The server stopped before the answer was done."
    return ApiError(503, message, kind="server_error", code="draining", retry_after=RETRY_SECONDS, refusal=False)


def answer(error: ApiError) -> JSONResponse:
    """Return the response that has `error`."""
    return JSONResponse(error.body, error.status, error.headers)
