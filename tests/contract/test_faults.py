"""Every fault of API.md §4 as each client sees it: one table of faults, and a list of observers.

An observer posts one completion and returns what it learns of the error. Raw HTTP, the official client and ours, whole
and streamed, must learn the same. What a browser shows of them is in tests/server/playground/test_refusals.py.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self

import httpx
import openai
import pytest

import thoughtbubbles_client as ours
from tests.clients.harness import CLIENTS
from tests.server.harness import Json, Running, Serve, eventually
from thoughtbubbles.server.keys import ApiKeys

KEY = "sk-right"
FORCED = {"max_tokens": 9, "ignore_eos": True, "logit_bias": {"65": 100}}
"""A letter each time, which is sent at once."""


@dataclass(frozen=True)
class Seen:
    """What a client learns of an error."""

    status: int | None
    """None in the middle of a stream, whose status was 200."""
    code: str | None
    type: str | None
    param: str | None
    raised: object = None
    """The class of the exception; None for raw HTTP."""

    @classmethod
    def of(cls, status: int | None, error: Json) -> Self:
        return cls(status, error["code"], error["type"], error["param"])


Observer = Callable[[str, str, Json, int | None], Seen]
"""Takes the URL, the key and the body of a completion, and how often to try again (None: as often as by default)."""


def http(url: str, key: str, body: Json, _retries: int | None) -> Seen:
    response = httpx.post(f"{url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=30)
    if response.status_code != 200:
        assert response.headers["x-request-id"]
        if response.status_code in {429, 503}:
            assert 1 <= int(response.headers["retry-after"]) <= 120
        return Seen.of(response.status_code, response.json()["error"])
    *_, last, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return Seen.of(None, json.loads(last.removeprefix("data: "))["error"])


def official(url: str, key: str, body: Json, retries: int | None) -> Seen:
    settings = {} if retries is None else {"max_retries": retries}
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=30, **settings) as client:
        try:
            list(client.completions.create(model="", prompt="a", extra_body=body, stream=body.get("stream", False)))
        except openai.APIStatusError as error:
            return Seen(
                error.status_code if error.request_id else None, error.code, error.type, error.param, type(error)
            )
        except openai.APIError as error:
            return Seen(None, error.code, error.type, error.param, type(error))
    raise AssertionError("no error")


def own(flavour: str) -> Observer:
    def observe(url: str, key: str, body: Json, retries: int | None) -> Seen:
        settings = {} if retries is None else {"retry": ours.RetryPolicy(retries=retries)}
        given = {"prompt": "a", "return_fork_counts": False, **body}
        with CLIENTS[flavour](url, api_key=key, timeout=30, **settings) as client:
            try:
                list(client.stream(**given)) if given.pop("stream", False) else client.complete(**given)
            except ours.ApiError as error:
                return Seen(error.status, error.code, error.kind, error.param, type(error))
        raise AssertionError("no error")

    return observe


OBSERVERS: dict[str, Observer] = {"http": http, "openai": official, "ours": own("sync"), "ours async": own("async")}

Strike = Callable[[Running, Callable[[], Seen]], Seen]
"""Brings a fault about, has it observed, and returns what was seen."""


def nothing(_server: Running, observe: Callable[[], Seen]) -> Seen:
    """The request itself is the fault."""
    return observe()


def full_queue(server: Running, observe: Callable[[], Seen]) -> Seen:
    with ThreadPoolExecutor() as pool:
        server.engine.hold()
        running = pool.submit(server.complete, prompt="a", **FORCED)
        server.engine.wait_until_held()
        waiting = pool.submit(server.complete, prompt="bcde", **FORCED)
        server.wait_until_asked()
        refused = pool.submit(observe)
        server.wait_until_asked(2)
        server.engine.let_go()
        assert [each.result()["usage"]["completion_tokens"] for each in (running, waiting)] == [9, 9]
        return refused.result()


def draining(server: Running, observe: Callable[[], Seen]) -> Seen:
    server.service.worker.draining = True
    try:
        return observe()
    finally:
        server.service.worker.draining = False


def held(server: Running, observe: Callable[[], Seen]) -> Seen:
    """The engine takes one step and no other until the time is up."""
    server.engine.hold(after=1)
    seen = observe()
    server.engine.let_go()
    eventually(lambda: not server.engine.has_work)
    return seen


def cancelled(server: Running, observe: Callable[[], Seen]) -> Seen:
    server.engine.hold()
    with ThreadPoolExecutor() as pool:
        seen = pool.submit(observe)
        server.engine.wait_until_held()
        (name,) = {generation.completion_id for generation in server.service.worker._by_request.values()}
        answer = server.client.post(f"/v1/completions/{name}/cancel")
        assert answer.json() == {"id": name, "cancelled": True}
        return seen.result()


def burst(server: Running, observe: Callable[[], Seen]) -> Seen:
    server.engine.fault = RuntimeError("the model broke")
    return observe()


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    status: int
    code: str
    theirs: type[openai.APIError]
    own: type[ours.ApiError]
    param: str | None = None
    body: Json = field(default_factory=dict)
    strike: Strike = nothing
    key: str = KEY
    type: str = "invalid_request_error"
    retried: bool = False
    """Clients try again after a while."""
    settings: Json = field(default_factory=dict)
    """Of a server of its own; none: the shared one."""
    midway: bool = False
    """A stream has begun, so that its error comes within it."""


BAD: Any = (openai.BadRequestError, ours.BadRequestError)
FAULTS = {
    "wrong type": Fault(400, "invalid_type", *BAD, "n", {"n": "x"}),
    "integer too small": Fault(400, "integer_below_min_value", *BAD, "n", {"n": 0}),
    "integer too large": Fault(400, "integer_above_max_value", *BAD, "n", {"n": 130}),
    "decimal too small": Fault(400, "decimal_below_min_value", *BAD, "temperature", {"temperature": -1}),
    "decimal too large": Fault(400, "decimal_above_max_value", *BAD, "top_p", {"top_p": 2}),
    "list too long": Fault(400, "array_above_max_length", *BAD, "stop", {"stop": ["a"] * 65}),
    "no such token": Fault(400, "invalid_token_id", *BAD, "prompt[0]", {"prompt": [9999]}),
    "no token id": Fault(400, "invalid_token_id", *BAD, "logit_bias", {"logit_bias": {"x": 1}}),
    "not supported": Fault(400, "unsupported_parameter", *BAD, "suffix", {"suffix": "end"}),
    "too long": Fault(
        400, "context_length_exceeded", openai.BadRequestError, ours.ContextLengthError, "prompt", {"prompt": [1] * 64}
    ),
    "no such model": Fault(
        404, "model_not_found", openai.NotFoundError, ours.ModelNotFoundError, "model", {"model": "gpt-4"}
    ),
    "too large a body": Fault(
        413, "request_too_large", openai.APIStatusError, ours.ContentTooLargeError, None, {"prompt": "a" * 4000}
    ),
    "wrong key": Fault(401, "invalid_api_key", openai.AuthenticationError, ours.UnauthorizedError, key="sk-wrong"),
    "full queue": Fault(
        429, "queue_full", openai.RateLimitError, ours.TooManyRequestsError, None, {"prompt": "fghi", **FORCED},
        full_queue, type="rate_limit_error", retried=True,
    ),
    "draining": Fault(
        503, "draining", openai.InternalServerError, ours.ServiceUnavailableError, None, {}, draining,
        type="server_error", retried=True,
    ),
    "time is up": Fault(
        408, "timeout", openai.APIStatusError, ours.RequestTimeoutError, None, FORCED, held, type="server_error",
        settings={"request_timeout_seconds": 0.5}, midway=True,
    ),
    "cancelled": Fault(
        499, "cancelled", openai.APIStatusError, ours.CompletionCancelledError, None, FORCED, cancelled,
    ),
    "engine failed": Fault(
        500, "engine_failed", openai.InternalServerError, ours.EngineFailedError, None, FORCED, burst,
        type="server_error", settings={"max_batch_size": 1},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared_server(serve: Serve) -> Iterator[Running]:
    """Full with one running and one waiting request, with a key, and short bodies."""
    keys = ApiKeys.of([KEY], "here")
    with serve(max_batch_size=1, max_waiting_streams=8, max_body_bytes=2000, api_keys=keys) as running:
        running.client.headers["authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture
def no_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a client that waits, for that is what each does before it tries again."""

    def sleep(_seconds: float) -> None:
        raise AssertionError("the client tries again")

    for name in ("openai._base_client.time", "thoughtbubbles_client.client.time"):
        monkeypatch.setattr(name, SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("thoughtbubbles_client.async_client.asyncio", SimpleNamespace(sleep=sleep))


@pytest.mark.usefixtures("no_retry")
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_observer_sees_the_fault(
    fault: str, observer: str, streamed: bool, serve: Serve, request: pytest.FixtureRequest
) -> None:
    row, observe = FAULTS[fault], OBSERVERS[observer]
    body = {**row.body, "stream": True} if streamed else row.body
    with serve(**row.settings) if row.settings else nullcontext(request.getfixturevalue("server")) as server:
        seen = row.strike(server, lambda: observe(server.url, row.key, body, 0 if row.retried else None))
    midway = row.midway and streamed
    raised = {"http": None, "openai": openai.APIError if midway else row.theirs}.get(observer, row.own)
    assert seen == Seen(None if midway else row.status, row.code, row.type, row.param, raised)
