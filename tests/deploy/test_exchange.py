"""The exchange between a client and its replica, without a cluster and without Ray."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Receive, Scope, Send

from deploy.replicas.exchange import Answer, HttpRequest, answers
from deploy.replicas.metrics import labelled, page
from thoughtbubbles.server.protocol import errors

SCOPE = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "state": {"loop": object()}}
START = {"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"mine")]}
STREAM = {**START, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
PART = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
LAST = {"type": "http.response.body", "body": b"", "more_body": False}


def no_pause() -> float:
    return 0


def test_a_request_takes_nothing_of_its_own_process_along() -> None:
    assert set(HttpRequest.of(SCOPE, b"").scope) == {"type", "method", "path", "headers"}


def test_an_application_is_heard_as_it_sends() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        await send(START)
        await send({**LAST, "body": scope["path"].encode() + message["body"]})

    async def run() -> list[Message]:
        return [message async for message in answers(app, HttpRequest.of(SCOPE, b"!"), no_pause)]

    assert asyncio.run(run()) == [START, {**LAST, "body": b"/v1/completions!"}]


def test_who_stops_listening_has_left_and_the_application_ends_before_that_is_over() -> None:
    seen: list[str] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        seen.append((await receive())["type"])
        await asyncio.sleep(0)
        seen.append("ended")

    async def run() -> None:
        async with aclosing(answers(app, HttpRequest.of(SCOPE, b""), no_pause)) as messages:
            await anext(messages)
        assert seen == ["http.disconnect", "ended"]

    asyncio.run(run())


def test_what_comes_in_a_pause_is_sent_together() -> None:
    paused = asyncio.Event()

    def pause() -> float:
        paused.set()
        return 0.01

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        for tokens in (b"0", b"12345", b"678"):
            for token in tokens:
                await send({**PART, "body": bytes([token])})
            await paused.wait()
            paused.clear()
        await send(LAST)

    async def run() -> list[bytes]:
        return [message.get("body", b"start") async for message in answers(app, HttpRequest.of(SCOPE, b""), pause)]

    assert asyncio.run(run()) == [b"start", b"0", b"12345", b"678", b""]


def test_what_was_sent_before_an_application_broke_is_heard() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(PART)
        raise OSError("the application broke")

    async def run() -> None:
        async with aclosing(answers(app, HttpRequest.of(SCOPE, b""), no_pause)) as messages:
            assert [await anext(messages), await anext(messages)] == [START, PART]
            with pytest.raises(OSError, match="the application broke"):
                await anext(messages)

    asyncio.run(run())


def passed_on(messages: Sequence[Message], error: errors.ApiError | None = None) -> list[Message]:
    """What the client gets of these, and of the error that follows."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        answer = Answer(SCOPE, send)
        for message in messages:
            await answer.pass_on({**message, "headers": [*message["headers"]]} if "headers" in message else message)
        if error is not None:
            await answer.fail(error)

    asyncio.run(run())
    return sent


def test_an_answer_is_passed_on_without_the_id_that_the_proxy_adds() -> None:
    assert passed_on([START, PART, LAST]) == [{**START, "headers": []}, PART, LAST]


@pytest.mark.parametrize("before", [[], [START], [STREAM]], ids=["nothing", "status", "status of a stream"])
def test_an_error_before_the_body_is_the_answer(before: Sequence[Message]) -> None:
    start, body = passed_on(before, errors.cut_off())
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == "draining"


def test_an_error_in_a_stream_is_its_last_event() -> None:
    *before, end = passed_on([STREAM, PART], errors.cut_off())
    assert before == [STREAM, PART]
    event, done = end["body"].decode().removesuffix("\n\n").split("\n\n")
    assert json.loads(event.removeprefix("data: ")) == errors.cut_off().body
    assert done == "data: [DONE]"
    assert not end["more_body"]


def test_an_error_after_the_end_is_not_told() -> None:
    assert passed_on([STREAM, PART, LAST], errors.cut_off()) == [STREAM, PART, LAST]


def test_an_error_within_a_body_that_is_no_stream_breaks_the_connection() -> None:
    with pytest.raises(errors.ApiError):
        passed_on([START, PART], errors.cut_off())


def test_the_metrics_of_replicas_stand_together_by_name() -> None:
    def registry(value: float) -> CollectorRegistry:
        made = CollectorRegistry()
        Counter("tokens", "Tokens.", ["layer"], registry=made).labels(layer="3").inc(value)
        Histogram("seconds", "Seconds.", buckets=[1], registry=made).observe(value)
        return made

    text = page([labelled(registry(value).collect(), replica) for replica, value in (("a", 0.5), ("b", 2))]).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE tokens_total counter") == 1
    totals = {tuple(each.labels.items()): each.value for each in families["tokens"].samples if "total" in each.name}
    assert totals == {(("layer", "3"), ("replica", "a")): 0.5, (("layer", "3"), ("replica", "b")): 2.0}
    within = {
        each.labels["replica"]: each.value for each in families["seconds"].samples if "1.0" in each.labels.values()
    }
    assert within == {"a": 1.0, "b": 0.0}
