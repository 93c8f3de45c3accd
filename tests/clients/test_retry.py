"""When the client retries: after which failures, how often, and how long it waits."""

import asyncio
from collections.abc import Sequence
from email.utils import formatdate
from types import SimpleNamespace

import httpx
import pytest

from tests.clients.harness import COMPLETE, DONE, STREAMED, Body, MakeClient, answering, event, part, refusal
from thoughtbubbles_client import (
    ApiError,
    BadRequestError,
    DisconnectedError,
    InvalidAnswerError,
    RetryPolicy,
    ServiceUnavailableError,
    ThoughtbubblesError,
    TimedOutError,
    TooManyRequestsError,
    UnreachableError,
)

DROPPED = httpx.ReadError("the connection broke")
BUSY = refusal(429, {"retry-after": "3"}, code="queue_full")


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client would have waited; chance is always in the middle."""
    seconds: list[float] = []

    async def sleep(pause: float) -> None:
        seconds.append(pause)

    monkeypatch.setattr("thoughtbubbles_client.client.time", SimpleNamespace(sleep=seconds.append))
    monkeypatch.setattr("thoughtbubbles_client.async_client.asyncio", SimpleNamespace(sleep=sleep))
    for module in ("client", "async_client"):
        monkeypatch.setattr(f"thoughtbubbles_client.{module}.random", SimpleNamespace(random=lambda: 0.5))
    return seconds


@pytest.mark.parametrize(
    ("failures", "pauses"),
    [
        ([BUSY], [3.125]),
        ([BUSY, BUSY], [3.125, 3.25]),
        ([DROPPED], [0.375]),
        ([httpx.ConnectError("refused"), DROPPED], [0.375, 0.75]),
        ([httpx.ConnectTimeout("nobody there")], [0.375]),
        ([refusal(500)], [0.375]),
        ([refusal(408, code="request_timeout")], [0.375]),
        ([refusal(409)], [0.375]),
        ([refusal(418, {"x-should-retry": "true"})], [0.375]),
        ([refusal(503, {"retry-after": "soon"})], [0.375]),
        ([refusal(503, {"retry-after": "0"})], [0.125]),
        ([refusal(503, {"retry-after": formatdate(0, usegmt=True)})], [0.125]),
        ([refusal(503, {"retry-after": "-5"})], [0.125]),
    ],
)
def test_asked_again(
    make_client: MakeClient, waited: list[float], failures: Sequence[httpx.Response | Exception], pauses: list[float]
) -> None:
    client = make_client(transport=answering(*failures, COMPLETE))
    assert client.complete("a").text == "done"
    assert waited == pauses


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (refusal(400), BadRequestError),
        (refusal(500, {"x-should-retry": "false"}), ApiError),
        (refusal(408, {"x-should-retry": "false"}, code="timeout"), ApiError),
        (refusal(429, {"retry-after": "121"}), TooManyRequestsError),
        (refusal(503, {"retry-after": "inf"}), ServiceUnavailableError),
        (httpx.ReadTimeout("nothing came"), TimedOutError),
        (httpx.Response(200, content=b"{}"), InvalidAnswerError),
    ],
)
def test_not_asked_again(
    make_client: MakeClient,
    waited: list[float],
    failure: httpx.Response | Exception,
    kind: type[ThoughtbubblesError],
) -> None:
    client = make_client(transport=answering(failure, COMPLETE))
    with pytest.raises(kind):
        client.complete("a")
    assert waited == []


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_as_often_as_allowed(make_client: MakeClient, waited: list[float], retries: int) -> None:
    client = make_client(transport=answering(*[DROPPED] * (retries + 1), COMPLETE), retry=RetryPolicy(retries=retries))
    with pytest.raises(DisconnectedError):
        client.complete("a")
    assert waited == [0.375, 0.75, 1.5, 3.0, 6.0][:retries]


def test_a_stream_is_asked_again_until_it_begins(make_client: MakeClient, waited: list[float]) -> None:
    stream = httpx.Response(200, headers=STREAMED, stream=Body([event(part("a")), DONE]))
    client = make_client(transport=answering(BUSY, stream))
    assert [each.text for each in client.stream()] == ["a"]
    assert waited == [3.125]


def test_a_stream_that_has_begun_is_not_asked_again(make_client: MakeClient, waited: list[float]) -> None:
    """Its events have been used."""
    broken = httpx.Response(200, headers=STREAMED, stream=Body([event(part("a")), DROPPED]))
    client = make_client(transport=answering(broken, COMPLETE))
    stream = client.stream()
    assert next(stream).text == "a"
    with pytest.raises(DisconnectedError):
        next(stream)
    assert waited == []


def test_a_task_is_cancelled_while_it_waits() -> None:
    from thoughtbubbles_client import AsyncClient

    async def leave() -> None:
        async with AsyncClient("http://server", transport=answering(BUSY, COMPLETE)) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.complete("a"), 0.01)

    asyncio.run(leave())


def busy(seconds: float) -> ApiError:
    error = TooManyRequestsError("full", status=429)
    error.retry_after = seconds
    return error


def test_pauses_grow_and_are_spread() -> None:
    policy = RetryPolicy(retries=10**6, first_seconds=1, longest_seconds=5)
    lost = UnreachableError("gone")
    assert [policy.pause(lost, failures, 0) for failures in (1, 2, 3, 4, 10**6)] == [0.5, 1, 2, 2.5, 2.5]
    assert [policy.pause(lost, failures, 1) for failures in (1, 2, 3, 4, 10**6)] == [1, 2, 4, 5, 5]
    assert policy.pause(lost, 10**6 + 1, 0) is None


def test_what_the_server_says_is_never_cut_short() -> None:
    policy = RetryPolicy(patience_seconds=60)
    assert policy.pause(busy(60), 1, 0) == 60
    assert policy.pause(busy(60), 1, 1) == 60.25
    assert policy.pause(busy(61), 1, 0) is None


@pytest.mark.parametrize("name", ["retries", "first_seconds", "longest_seconds", "patience_seconds"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_policy_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 0, not {value}"):
        RetryPolicy(**{name: value})  # type: ignore[arg-type]
