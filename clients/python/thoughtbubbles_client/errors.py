"""The exceptions of failed requests.

ThoughtbubblesError
├── NoAnswerError                       no complete answer arrived
│   ├── UnreachableError                no connection could be made; nothing was sent
│   ├── DisconnectedError               the connection broke before the answer was complete
│   └── TimedOutError                   no byte arrived within the client's timeout
├── InvalidAnswerError                  the answer is not in the API's form
└── ApiError                            the server refused, or ended a stream: status, code, param, …
    ├── BadRequestError                 400 and other 4xx: a mistake in the request; `param` names the field
    │   └── ContextLengthError          prompt and completion are longer than the model's context
    ├── UnauthorizedError               401, 403: no key, or one without permission
    ├── NotFoundError                   404: unknown path, or the completion is not running
    │   └── ModelNotFoundError          the server has no model with this name
    ├── ConflictError                   409: the weights of another checkpoint are being loaded
    ├── RequestTimeoutError             408: the server's time limit has passed
    ├── ContentTooLargeError            413: the body is larger than the server accepts
    ├── TooManyRequestsError            429: the queue, or your share of it, is full; retry after `retry_after`
    ├── CompletionCancelledError        499: ended by `cancel`
    ├── ServerError                     500 and other 5xx
    │   └── EngineFailedError           the engine failed, and the server is going down
    └── ServiceUnavailableError         503: the server is starting or stopping, or has too many connections

Wrong arguments raise `ValueError` or `TypeError` before anything is sent.
"""

from collections.abc import Mapping


class ThoughtbubblesError(Exception):
    """A request failed."""


class NoAnswerError(ThoughtbubblesError):
    """No complete answer arrived."""


class UnreachableError(NoAnswerError):
    """No connection could be made; nothing was sent."""


class DisconnectedError(NoAnswerError):
    """The connection broke before the answer was complete. Parts that a stream returned before are valid."""


class TimedOutError(NoAnswerError):
    """No byte arrived within the client's `timeout`."""


class InvalidAnswerError(ThoughtbubblesError):
    """The answer is not in the API's form: it may be of another kind of server, or a proxy's page."""


class ApiError(ThoughtbubblesError):
    """The server refused the request or ended a stream, and gave the reason."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        """The server's message."""
        self.status = status
        """The HTTP status; None if the error came in a stream, whose status was 200."""
        self.kind = kind
        """The error's `type`, such as `invalid_request_error`."""
        self.code = code
        """The error's code, such as `queue_full`."""
        self.param = param
        """The wrong field of the request."""
        self.request_id: str | None = None
        """The id of the HTTP request in the server's log."""
        self.retry_after: float | None = None
        """Seconds after which the server asks the client to retry."""
        self.should_retry: bool | None = None
        """Whether a retry can help, if the server says so; else None."""

    def __str__(self) -> str:
        label = " ".join(str(part) for part in (self.status, self.code) if part is not None)
        return f"{label}: {self.message}" if label else self.message


class BadRequestError(ApiError):
    """The request has a mistake; `param` names the field."""


class ContextLengthError(BadRequestError):
    """Prompt and completion together are longer than the model's context."""


class UnauthorizedError(ApiError):
    """The request has no key, or one without permission."""


class NotFoundError(ApiError):
    """The server does not have this path, or the completion is not running."""


class ModelNotFoundError(NotFoundError):
    """The server has no model with this name."""


class ConflictError(ApiError):
    """The weights of another checkpoint are being loaded."""


class RequestTimeoutError(ApiError):
    """The server's time limit passed before the answer was complete."""


class ContentTooLargeError(ApiError):
    """The body is larger than the server accepts."""


class TooManyRequestsError(ApiError):
    """The queue, or this client's share of it, is full; retry after `retry_after` seconds."""


class CompletionCancelledError(ApiError):
    """The completion was ended with `cancel`."""


class ServerError(ApiError):
    """The server made a mistake."""


class EngineFailedError(ServerError):
    """The engine failed; this server process ends."""


class ServiceUnavailableError(ApiError):
    """The server is starting or stopping, or has too many connections."""


STATUSES: Mapping[int, type[ApiError]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    408: RequestTimeoutError,
    409: ConflictError,
    413: ContentTooLargeError,
    429: TooManyRequestsError,
    499: CompletionCancelledError,
    503: ServiceUnavailableError,
}
"""Classes by HTTP status. Other 4xx are `BadRequestError`, other 5xx `ServerError`."""

CODES: Mapping[str, type[ApiError]] = {
    "context_length_exceeded": ContextLengthError,
    "model_not_found": ModelNotFoundError,
    "timeout": RequestTimeoutError,
    "grammar_too_complex": BadRequestError,
    "cancelled": CompletionCancelledError,
    "engine_failed": EngineFailedError,
    "draining": ServiceUnavailableError,
}
"""Classes by code: more specific than by status. Errors in a stream have no status."""


def error_class(status: int | None, kind: str | None, code: str | None) -> type[ApiError]:
    """Return the class of an error with this status (None in a stream), type and code."""
    by_code = CODES.get(code or "", ApiError)
    if status is None:
        return ServerError if by_code is ApiError and kind == "server_error" else by_code
    by_status = STATUSES.get(status) or {4: BadRequestError, 5: ServerError}.get(status // 100, ApiError)
    return by_code if issubclass(by_code, by_status) else by_status
