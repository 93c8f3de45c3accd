"""Handlers of the exceptions that routes raise: each gives an answer in the form of `protocol.errors`."""

from collections.abc import Callable, Mapping

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from thoughtbubbles.engine import ClientQueueFull, InvalidRequest
from thoughtbubbles.server.bridge.errors import (
    CancelledError,
    EngineFailedError,
    GenerationError,
    GrammarFailedError,
    LoadError,
    LoadInProgressError,
    LoadRefusedError,
    LoadTimeoutError,
    NonFiniteLogitsError,
    RefusedError,
    ServerStoppedError,
    TimeLimitError,
    UnavailableError,
)
from thoughtbubbles.server.protocol import errors
from thoughtbubbles.server.protocol.errors import ApiError

WITHOUT_DETAILS: Mapping[type[GenerationError], Callable[[], ApiError]] = {
    CancelledError: errors.cancelled,
    ServerStoppedError: errors.cut_off,
    NonFiniteLogitsError: errors.non_finite_logits,
    EngineFailedError: errors.engine_failed,
}
"""The answer to each error that has no details."""


def api_error(error: GenerationError) -> ApiError:
    """Return the answer to a request whose generation raised `error`."""
    match error:
        case RefusedError():
            return _refused(error)
        case UnavailableError(reason=reason):
            return errors.unavailable(reason)
        case GrammarFailedError(reason=reason):
            return errors.grammar_failed(reason)
        case TimeLimitError(seconds=seconds):
            return errors.timed_out(seconds)
        case _:
            return WITHOUT_DETAILS[type(error)]()


def load_api_error(error: LoadError) -> ApiError:
    """Return the answer to a load of weights that raised `error`."""
    match error:
        case LoadRefusedError():
            return errors.load_refused(str(error))
        case LoadInProgressError():
            return errors.load_in_progress()
        case LoadTimeoutError(seconds=seconds):
            return errors.load_timed_out(seconds)
        case _:
            return errors.load_failed(str(error))


def _refused(error: RefusedError) -> ApiError:
    if isinstance(error.refusal, InvalidRequest):
        return errors.bad_request(str(error), error.refusal.code, error.refusal.param)
    full = errors.client_queue_full if isinstance(error.refusal, ClientQueueFull) else errors.queue_full
    return full(str(error), error.retry_seconds)


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with an `ApiError`, and count it if it refuses the request."""
    assert isinstance(error, ApiError)
    if error.refusal:
        request.app.state.service.metrics.rejected.labels(reason=error.code).inc()
    return errors.answer(error)


async def on_generation_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the `ApiError` of a `GenerationError`."""
    assert isinstance(error, GenerationError)
    return await on_api_error(request, api_error(error))


async def on_load_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the `ApiError` of a `LoadError`."""
    assert isinstance(error, LoadError)
    return await on_api_error(request, load_api_error(error))


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Answer what the router refuses: an unknown path, or a method that a path does not have."""
    assert isinstance(error, HTTPException)
    body = errors.no_route(error.status_code, f"{request.method} {request.url.path}").body
    return JSONResponse(body, error.status_code, error.headers)


async def on_disconnect(request: Request, _error: Exception) -> Response:
    """Count a client that disconnected; nobody receives the answer."""
    request.app.state.service.metrics.disconnects.inc()
    return Response(status_code=errors.CLIENT_CLOSED_REQUEST)


async def on_unexpected(_request: Request, _error: Exception) -> JSONResponse:
    """Answer an exception that nothing else handles, without its details."""
    return errors.answer(errors.internal_error())
