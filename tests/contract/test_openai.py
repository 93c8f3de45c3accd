"""The official client: its retries, and streams that it leaves. Its errors: test_faults.py."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import pytest

from tests.server.harness import Running, Serve, eventually
from thoughtbubbles.server.keys import ApiKeys

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


def test_an_unknown_path(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="tiny", input="a")
    assert raised.value.code == "not_found"


def test_a_body_that_is_no_object(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.post("/completions", body=["no", "object"], cast_to=object)
    assert raised.value.code == "invalid_json"


def test_keys(serve: Serve) -> None:
    keys = ApiKeys.of(["sk-right"], "here")
    with serve(api_keys=keys) as server, client_of(server, api_key="sk-right") as client:
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


def assert_given_up(server: Running, held_after: int) -> None:
    """A stream whose client disconnects during a blocked step is aborted after that step, and its pages are freed."""
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
