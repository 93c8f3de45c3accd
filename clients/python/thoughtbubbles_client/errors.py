"""Everything that this package raises for what a server does, or does not do.

ThoughtbubblesError
├── NoAnswerError                       no whole answer came
│   ├── UnreachableError                no connection could be made; nothing was asked
│   ├── DisconnectedError               the connection broke before the answer was whole
│   └── TimedOutError                   nothing came for as long as this client waits
├── InvalidAnswerError                  what came is not what the API says
└── ApiError                            the server said no, or broke off: status, code, param, …
    ├── BadRequestError                 400 and other 4xx: a mistake in the request; `param` names the field
    │   └── ContextLengthError          prompt and completion are longer than the model's context
    ├── UnauthorizedError               401, 403: no API key, or one that may not do this
    ├── NotFoundError                   404: no such path, or no such completion running
    │   └── ModelNotFoundError          the server has no model of this name
    ├── RequestTimeoutError             408: the server's own time limit is over
    ├── ContentTooLargeError            413: the body is longer than the server reads
    ├── TooManyRequestsError            429: the queue, or your share of it, is full; `retry_after` says when to return
    ├── CompletionCancelledError        499: ended by `cancel`
    ├── ServerError                     500 and other 5xx
    │   └── EngineFailedError           the engine broke, and the server is going down
    └── ServiceUnavailableError         503: the server starts, stops, or has too many connections

A wrong argument of a function is a `ValueError` or a `TypeError` instead, before anything is sent.
"""

from collections.abc import Mapping


class ThoughtbubblesError(Exception):
    """Anything that a server does wrong, or that it says is wrong."""


class NoAnswerError(ThoughtbubblesError):
    """No whole answer came."""


class UnreachableError(NoAnswerError):
    """No connection could be made; nothing was asked."""


class DisconnectedError(NoAnswerError):
    """The connection broke before the answer was whole; what a stream gave until then is right."""


class TimedOutError(NoAnswerError):
    """Nothing came for as long as the client's `timeout`."""


class InvalidAnswerError(ThoughtbubblesError):
    """What came is not what the API says: another kind of server, or a proxy's own page."""


class ApiError(ThoughtbubblesError):
    """The server said no, or broke off a stream, and told why."""

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
        """The server's own words."""
        self.status = status
        """HTTP's; None where a stream broke off, whose status was 200."""
        self.kind = kind
        """The wire's `type`, such as `invalid_request_error`."""
        self.code = code
        """One word for programs, such as `queue_full`."""
        self.param = param
        """The field of the request that is wrong."""
        self.request_id: str | None = None
        """What the server's log calls this request."""
        self.retry_after: float | None = None
        """Seconds after which the server wants to be asked again."""
        self.should_retry: bool | None = None
        """Whether the server thinks that asking again can help; None where it does not say."""

    def __str__(self) -> str:
        label = " ".join(str(part) for part in (self.status, self.code) if part is not None)
        return f"{label}: {self.message}" if label else self.message


class BadRequestError(ApiError):
    """The request has a mistake; `param` names the field."""


class ContextLengthError(BadRequestError):
    """Prompt and completion together are longer than the model's context."""


class UnauthorizedError(ApiError):
    """No API key was sent, or one that may not do this."""


class NotFoundError(ApiError):
    """The server has no such path, or no such completion is running."""


class ModelNotFoundError(NotFoundError):
    """The server has no model of this name."""


class RequestTimeoutError(ApiError):
    """The server's own time limit was over before the answer was done."""


class ContentTooLargeError(ApiError):
    """The body is longer than the server reads."""


class TooManyRequestsError(ApiError):
    """As many requests wait as may; `retry_after` says when to come back."""


class CompletionCancelledError(ApiError):
    """Someone ended this completion with `cancel`."""


class ServerError(ApiError):
    """The server made a mistake of its own."""


class EngineFailedError(ServerError):
    """The engine broke; this server process answers nothing more."""


class ServiceUnavailableError(ApiError):
    """The server takes nothing at present, or stopped before the answer was done; or too many are connected."""


STATUSES: Mapping[int, type[ApiError]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    408: RequestTimeoutError,
    413: ContentTooLargeError,
    429: TooManyRequestsError,
    499: CompletionCancelledError,
    503: ServiceUnavailableError,
}
"""Classes by HTTP status; another 4xx is a `BadRequestError`, another 5xx a `ServerError`."""

CODES: Mapping[str, type[ApiError]] = {
    "context_length_exceeded": ContextLengthError,
    "model_not_found": ModelNotFoundError,
    "timeout": RequestTimeoutError,
    "cancelled": CompletionCancelledError,
    "engine_failed": EngineFailedError,
    "draining": ServiceUnavailableError,
}
"""Classes by code: a closer one than the status's, or in a stream, which has no other status than 200, the only one."""


def error_class(status: int | None, kind: str | None, code: str | None) -> type[ApiError]:
    """The class for an error of this status (None in a stream), type and code."""
    by_code = CODES.get(code or "", ApiError)
    if status is None:
        return ServerError if by_code is ApiError and kind == "server_error" else by_code
    by_status = STATUSES.get(status) or {4: BadRequestError, 5: ServerError}.get(status // 100, ApiError)
    return by_code if issubclass(by_code, by_status) else by_status
