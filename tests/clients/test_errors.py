"""The client's errors: the drawn tree, each error of the server, each of httpx."""

import inspect
import re
from collections.abc import Iterator

import httpx
import pytest

import thoughtbubbles_client
from tests.clients.harness import MakeClient, answering, event, refusal, streaming
from tests.server.harness import Running
from thoughtbubbles.server.protocol import errors as server_errors
from thoughtbubbles.server.protocol.errors import ApiError as ServerApiError
from thoughtbubbles.server.protocol.errors import answer
from thoughtbubbles_client import RetryPolicy, errors
from thoughtbubbles_client.transport import ERRORS

ONCE = RetryPolicy(retries=0)

SAMPLES = {"message": "m", "code": "c", "param": "p", "reason": "draining", "seconds": 1, "limit": 1, "retry_after": 7,
           "status": 404, "route": "GET /nowhere", "values": 2, "nested": 1,
           "name": "gpt-4", "served": "tiny", "encoding": "gzip"}  # fmt: skip
"""Arguments of the server's functions that make errors."""

OURS = {
    "bad_request": errors.BadRequestError,
    "invalid_http": errors.BadRequestError,
    "head_too_large": errors.BadRequestError,
    "no_key": errors.UnauthorizedError,
    "not_found": errors.NotFoundError,
    "no_model": errors.ModelNotFoundError,
    "no_admin_key": errors.UnauthorizedError,
    "no_administration": errors.UnauthorizedError,
    "load_refused": errors.BadRequestError,
    "load_in_progress": errors.ConflictError,
    "load_timed_out": errors.RequestTimeoutError,
    "load_failed": errors.ServerError,
    "no_route": errors.NotFoundError,
    "unsupported_encoding": errors.BadRequestError,
    "too_slow": errors.RequestTimeoutError,
    "timed_out": errors.RequestTimeoutError,
    "too_large": errors.ContentTooLargeError,
    "too_many_values": errors.ContentTooLargeError,
    "queue_full": errors.TooManyRequestsError,
    "client_queue_full": errors.TooManyRequestsError,
    "unavailable": errors.ServiceUnavailableError,
    "too_many_connections": errors.ServiceUnavailableError,
    "cut_off": errors.ServiceUnavailableError,
    "cancelled": errors.CompletionCancelledError,
    "grammar_failed": errors.BadRequestError,
    "non_finite_logits": errors.ServerError,
    "engine_failed": errors.EngineFailedError,
    "internal_error": errors.ServerError,
}
"""What the client makes of each."""


def server_error(name: str) -> ServerApiError:
    function = getattr(server_errors, name)
    needed = [each for each, known in inspect.signature(function).parameters.items() if known.default is known.empty]
    made: ServerApiError = function(**{each: SAMPLES[each] for each in needed})
    return made


def test_every_error_of_the_server_is_known() -> None:
    functions = inspect.getmembers(server_errors, inspect.isfunction)
    makers = {name for name, function in functions if inspect.signature(function).return_annotation is ServerApiError}
    assert makers == OURS.keys()


@pytest.mark.parametrize("name", OURS)
def test_an_answer(make_client: MakeClient, name: str) -> None:
    told = server_error(name)
    response = answer(told)
    headers = {**response.headers, "x-request-id": "r-1"}
    given = httpx.Response(response.status_code, headers=headers, content=bytes(response.body))
    client = make_client(transport=answering(given), retry=ONCE)
    with pytest.raises(errors.ApiError) as raised:
        client.complete()
    error = raised.value
    assert type(error) is OURS[name]
    assert (error.message, error.status, error.kind) == (told.message, told.status, told.kind)
    assert (error.code, error.param, error.request_id) == (told.code, told.param, "r-1")
    assert (error.retry_after, error.should_retry) == (told.retry_after, False if told.useless else None)
    assert str(error) == f"{told.status} {told.code}: {told.message}"


@pytest.mark.parametrize("name", [name for name in OURS if not server_error(name).refusal])
def test_a_stream_that_is_broken_off(make_client: MakeClient, name: str) -> None:
    told = server_error(name)
    transport, body = streaming(event(told.body), event("[DONE]"))
    client = make_client(transport=transport)
    with pytest.raises(errors.ApiError) as raised:
        list(client.stream())
    assert type(raised.value) is OURS[name]
    assert (raised.value.status, raised.value.code, raised.value.kind) == (None, told.code, told.kind)
    assert body.closed


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "context_length_exceeded", errors.ContextLengthError),
        (404, "model_not_found", errors.ModelNotFoundError),
        (405, "method_not_allowed", errors.BadRequestError),
        (403, None, errors.UnauthorizedError),
        (422, "timeout", errors.BadRequestError),
        (500, "internal_error", errors.ServerError),
        (503, "starting", errors.ServiceUnavailableError),
        (504, None, errors.ServerError),
        (307, None, errors.ApiError),
    ],
)
def test_other_answers(make_client: MakeClient, status: int, code: str | None, kind: type[errors.ApiError]) -> None:
    transport = answering(refusal(status, {"x-should-retry": "false"}, code=code))
    client = make_client(transport=transport)
    with pytest.raises(errors.ApiError) as raised:
        client.complete()
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>", None),
        (b"x" * 300, "x" * 199 + "…", None),
        (b"", "", None),
        (b"\xff", "\ufffd", None),
        (b'{"detail":"Not Found"}', '{"detail":"Not Found"}', None),
        (b'{"error":"model not loaded"}', "model not loaded", None),
        (b'{"error":{"message":"busy","code":400}}', "busy", "400"),
        (b'{"error":{}}', "no reason given", None),
        (b"[]", "[]", None),
    ],
)
def test_other_servers_forms(make_client: MakeClient, body: bytes, message: str, code: str | None) -> None:
    transport = answering(httpx.Response(400, content=body))
    client = make_client(transport=transport)
    with pytest.raises(errors.BadRequestError) as raised:
        client.models()
    assert (raised.value.message, raised.value.code) == (message, code)


def test_a_redirect_names_the_place(make_client: MakeClient) -> None:
    transport = answering(httpx.Response(301, headers={"location": "https://server/v1/models"}))
    with pytest.raises(errors.ApiError, match=r"^301: redirected to https://server/v1/models, "):
        make_client(transport=transport).models()


def subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.mark.parametrize("theirs", list(subclasses(httpx.RequestError)))
def test_no_error_of_httpx_is_left(make_client: MakeClient, theirs: type[httpx.RequestError]) -> None:
    assert any(issubclass(theirs, known) for known in ERRORS)
    client = make_client(transport=answering(theirs("it broke")), retry=ONCE)
    with pytest.raises(errors.ThoughtbubblesError, match=r"^http://server/v1/models: it broke$") as raised:
        client.models()
    assert type(raised.value) is next(ours for known, ours in ERRORS.items() if issubclass(theirs, known))
    assert isinstance(raised.value.__cause__, theirs)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (httpx.ConnectError, errors.UnreachableError),
        (httpx.ConnectTimeout, errors.UnreachableError),
        (httpx.ReadTimeout, errors.TimedOutError),
        (httpx.PoolTimeout, errors.TimedOutError),
        (httpx.ReadError, errors.DisconnectedError),
        (httpx.RemoteProtocolError, errors.DisconnectedError),
        (httpx.DecodingError, errors.InvalidAnswerError),
    ],
)
def test_errors_of_httpx_in_a_stream(
    make_client: MakeClient, theirs: type[httpx.RequestError], ours: type[errors.ThoughtbubblesError]
) -> None:
    transport, body = streaming(b": keep-alive\n\n", theirs("it broke"))
    client = make_client(transport=transport)
    with pytest.raises(ours):
        list(client.stream())
    assert body.closed


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"[]", b"{}", b'{"id":"a","model":"b","choices":[{}]}', b'{"id":1,"choices":null}', b"\xff"],
)
def test_a_success_that_is_no_answer(make_client: MakeClient, content: bytes) -> None:
    client = make_client(transport=answering(httpx.Response(200, content=content)))
    with pytest.raises(errors.InvalidAnswerError, match="not an answer of this API"):
        client.complete()


def drawn() -> dict[str, str]:
    """Each class of the drawing and the one it hangs from."""
    parents, path = {}, {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]*)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            path[depth] = found[2]
            parents[found[2]] = path.get(depth - 1, "Exception")
    return parents


def test_the_drawing_is_the_tree() -> None:
    classes = inspect.getmembers(errors, inspect.isclass)
    assert drawn() == {name: kind.__mro__[1].__name__ for name, kind in classes if issubclass(kind, Exception)}
    assert drawn().keys() <= set(thoughtbubbles_client.__all__)
    for name, kind in classes:
        if issubclass(kind, errors.ThoughtbubblesError):
            assert getattr(thoughtbubbles_client, name) is kind


def test_the_servers_own_router(make_client: MakeClient, server: Running) -> None:
    client = make_client(f"{server.url}/elsewhere")
    with pytest.raises(errors.NotFoundError) as raised:
        client.models()
    assert (raised.value.code, raised.value.status) == ("not_found", 404)
