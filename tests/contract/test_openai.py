"""The official client: class, code and param of every error of API.md §4, its retries, and streams that it leaves."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import pytest

from server.keys import ApiKeys
from tests.server.harness import Json, Running, Serve, eventually

GO_ON = {"ignore_eos": True, "logit_bias": {"65": 100}}  # and a letter each time, which is told at once
Pause = Callable[[Callable[[], object]], list[float]]


def client_of(server: Running, **settings: object) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{server.url}/v1", "api_key": "unused", "timeout": 30, **settings})


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Pause:
    """Have something done whenever the client waits before it tries again; the seconds that it would have waited."""

    def instead(do: Callable[[], object]) -> list[float]:
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            do()

        monkeypatch.setattr("openai._base_client.time", SimpleNamespace(sleep=sleep))
        return waited

    return instead


@pytest.mark.parametrize(
    ("body", "kind", "code", "param"),
    [
        ({"n": "x"}, openai.BadRequestError, "invalid_type", "n"),
        ({"n": 0}, openai.BadRequestError, "integer_below_min_value", "n"),
        ({"n": 130}, openai.BadRequestError, "integer_above_max_value", "n"),
        ({"temperature": -1}, openai.BadRequestError, "decimal_below_min_value", "temperature"),
        ({"top_p": 2}, openai.BadRequestError, "decimal_above_max_value", "top_p"),
        ({"stop": ["a"] * 65}, openai.BadRequestError, "array_above_max_length", "stop"),
        ({"prompt": ["a"] * 1025}, openai.BadRequestError, "array_above_max_length", "prompt"),
        ({"prompt": [9999]}, openai.BadRequestError, "invalid_token_id", "prompt[0]"),
        ({"logit_bias": {"9999": 1}}, openai.BadRequestError, "invalid_token_id", "logit_bias"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "invalid_token_id", "logit_bias"),
        ({"prompt": [1] * 60}, openai.BadRequestError, "context_length_exceeded", "prompt"),
        ({"suffix": "end"}, openai.BadRequestError, "unsupported_parameter", "suffix"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
    ],
)
def test_mistakes(client: openai.OpenAI, body: Json, kind: type[openai.APIStatusError], code: str, param: str) -> None:
    for stream in (False, True):
        with pytest.raises(kind) as raised:
            client.completions.create(model="", prompt="a", stream=stream, extra_body=body)
        assert (raised.value.code, raised.value.param, raised.value.type) == (code, param, "invalid_request_error")
        assert raised.value.message.startswith(f"Error code: {raised.value.status_code}")
        assert raised.value.request_id


def test_an_unknown_path(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="tiny", input="a")
    assert raised.value.code == "not_found"


def test_a_body_that_is_no_object(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.post("/completions", body=["no", "object"], cast_to=object)
    assert raised.value.code == "invalid_json"


def test_a_body_over_the_limit(serve: Serve) -> None:
    with serve(max_body_bytes=1000) as server, client_of(server) as client:
        with pytest.raises(openai.APIStatusError) as raised:
            client.completions.create(model="", prompt="a" * 2000)
        assert (raised.value.status_code, raised.value.code) == (413, "request_too_large")


def test_keys(serve: Serve) -> None:
    with serve(api_keys=ApiKeys.of(["sk-right"], "here")) as server:
        with client_of(server, api_key="sk-wrong") as client, pytest.raises(openai.AuthenticationError) as raised:
            client.models.list()
        assert (raised.value.code, raised.value.type) == ("invalid_api_key", "invalid_request_error")
        with client_of(server, api_key="sk-right") as client:
            assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_full_queue_is_tried_again_when_the_server_says(
    serve: Serve, pause: Pause, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(max_batch_size=1, max_waiting_streams=8) as server, ThreadPoolExecutor() as pool:
        # What it would say is measured, and differs from one refusal to the next.
        monkeypatch.setattr(server.service.metrics.meter, "seconds_to_drain", lambda _stats: 7)
        waited = pause(lambda: (server.engine.let_go(), eventually(lambda: not server.engine.has_work)))
        with client_of(server) as client, client_of(server, max_retries=0) as impatient:
            server.engine.hold()
            running = pool.submit(client.completions.create, model="", prompt="a", max_tokens=9, extra_body=GO_ON)
            server.engine.wait_until_held()
            waiting = pool.submit(client.completions.create, model="", prompt="bcde", max_tokens=9, extra_body=GO_ON)
            server.wait_until_asked()
            server.engine.pass_step()
            server.engine.wait_until_held()
            refused = pool.submit(impatient.completions.create, model="", prompt="fghi", max_tokens=9, extra_body=GO_ON)
            server.wait_until_asked()
            server.engine.pass_step()
            server.engine.wait_until_held()
            with pytest.raises(openai.RateLimitError) as raised:
                refused.result()
            assert (raised.value.code, raised.value.type) == ("queue_full", "rate_limit_error")
            assert waited == []
            later = pool.submit(client.completions.create, model="", prompt="fghi", max_tokens=9, extra_body=GO_ON)
            server.wait_until_asked()
            server.engine.pass_step()
            for each in (running, waiting, later):
                assert each.result().usage.completion_tokens == 9
        assert raised.value.response.headers["retry-after"] == "7"
        assert waited == [7]


def test_a_server_that_takes_nothing_at_present_is_tried_again(server: Running, pause: Pause) -> None:
    worker = server.service.worker
    waited = pause(lambda: setattr(worker, "draining", False))
    worker.draining = True
    with client_of(server, max_retries=0) as impatient, pytest.raises(openai.InternalServerError) as raised:
        impatient.completions.create(model="", prompt="a")
    assert (raised.value.status_code, raised.value.code) == (503, "draining")
    with client_of(server) as client:
        assert client.completions.create(model="", prompt="a", max_tokens=1).usage.completion_tokens == 1
    assert waited == [float(raised.value.response.headers["retry-after"])]


def test_what_took_too_long_is_not_tried_again(serve: Serve, pause: Pause) -> None:
    waited = pause(lambda: None)
    with serve(request_timeout_seconds=0.5) as server, client_of(server) as client:
        server.engine.hold(after=1)
        with pytest.raises(openai.APIStatusError) as raised:
            client.completions.create(model="", prompt="a", max_tokens=9, extra_body=GO_ON)
        assert (raised.value.status_code, raised.value.code, waited) == (408, "timeout", [])
        server.engine.let_go()
        eventually(lambda: not server.engine.has_work)
        server.engine.hold(after=1)
        with pytest.raises(openai.APIError) as cut:
            list(client.completions.create(model="", prompt="a", max_tokens=9, stream=True, extra_body=GO_ON))
        assert cut.value.code == "timeout"


def test_a_failed_engine_is_not_tried_again(serve: Serve, pause: Pause) -> None:
    waited = pause(lambda: None)
    with serve() as server, client_of(server) as client:
        server.engine.fault = RuntimeError("the model broke")
        with pytest.raises(openai.InternalServerError) as raised:
            client.completions.create(model="", prompt="a")
        assert (raised.value.code, raised.value.type, waited) == ("engine_failed", "server_error", [])


def test_a_cancelled_completion_is_not_tried_again(server: Running, pause: Pause) -> None:
    waited = pause(lambda: None)
    with client_of(server) as client, ThreadPoolExecutor() as pool:
        server.engine.hold()
        asked = pool.submit(client.completions.create, model="", prompt="a", max_tokens=9)
        server.engine.wait_until_held()
        (name,) = {generation.name for generation in server.service.worker._generations.values()}
        assert client.post(f"/completions/{name}/cancel", cast_to=object) == {"id": name, "cancelled": True}
        with pytest.raises(openai.APIStatusError) as raised:
            asked.result()
        assert (raised.value.status_code, raised.value.code, waited) == (499, "cancelled", [])


def assert_given_up(server: Running, held_after: int) -> None:
    """A stream whose client left while a step stood still is over with that step, and nothing of it is kept."""
    eventually(lambda: server.service.worker._thread._commands.qsize() == 1)
    server.engine.let_go()
    eventually(lambda: not server.engine.has_work and server.engine.stats().cache_streams == 0)
    assert server.engine.steps == held_after + 1


def test_closing_a_stream_frees_its_pages(server: Running, client: openai.OpenAI) -> None:
    server.engine.hold(after=3)
    steps = server.engine.steps + 3
    with client.completions.create(model="", prompt="a", max_tokens=60, stream=True, extra_body=GO_ON) as stream:
        next(stream)
        server.engine.wait_until_held()
        assert server.engine.stats().cache_streams > 0
    assert_given_up(server, steps)


def test_cancelling_a_task_frees_its_pages(server: Running) -> None:
    server.engine.hold(after=3)
    steps = server.engine.steps + 3

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
            ask = client.completions.create(model="", prompt="a", max_tokens=60, extra_body=GO_ON)
            task = asyncio.create_task(ask)
            await asyncio.to_thread(server.engine.wait_until_held)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave())
    assert_given_up(server, steps)
