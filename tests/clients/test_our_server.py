"""The client against our server: contents, and streams that are left. Its errors: tests/contract/test_faults.py."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.clients.harness import MakeClient
from tests.server.harness import Running, Serve, eventually, keeping_up
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles_client import (
    ApiError,
    AsyncClient,
    BadRequestError,
    Client,
    CompletionCancelledError,
    DisconnectedError,
    Message,
    ModelNotFoundError,
    NotFoundError,
    RetryPolicy,
    ServiceUnavailableError,
    TimedOutError,
    Token,
    UnauthorizedError,
    UnreachableError,
)
from thoughtbubbles_client.parts import PartReader

ONCE = RetryPolicy(retries=0)
GO_ON: dict[str, Any] = {"ignore_eos": True, "logit_bias": {"65": 100}, "return_fork_counts": False}
"""A letter each time, which is told at once, alone or with those before it that were not read yet."""
MESSAGES: list[Message] = [{"role": "user", "content": "Speak."}]


@pytest.fixture
def client(server: Running, make_client: MakeClient) -> Client:
    return make_client(server.url)


def test_a_completion_is_what_the_server_says(server: Running, client: Client) -> None:
    asked: dict[str, Any] = {"prompt": ["a", "bc"], "n": 2, "max_tokens": 5, "seed": 3, "return_token_ids": True}
    raw = server.complete(**asked, return_fork_counts=True)
    answer = client.complete(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice, told in zip(answer.choices, raw["choices"], strict=True):
        assert (choice.text, choice.finish_reason) == (told["text"], told["finish_reason"])
        counts = zip(told["token_ids"], told["fork_counts"], strict=True)
        assert choice.tokens == tuple(Token(id=token_id, fork_count=count) for token_id, count in counts)
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, raw["usage"]["completion_tokens"])


def test_a_stream_is_the_completion_in_parts(client: Client) -> None:
    asked: dict[str, Any] = {"max_tokens": 12, "seed": 3, "n": 2, "fork_ratio": 2, "logprobs": 1, "echo": True}
    whole = client.complete("stream", **asked)
    with client.stream("stream", **asked) as stream:
        *parts, last = stream
    for choice in whole.choices:
        mine = [each for part in parts for each in part.choices if each.index == choice.index]
        assert "".join(each.text for each in mine) == choice.text
        assert tuple(token for each in mine for token in each.tokens) == choice.tokens
        assert [each.finish_reason for each in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
    assert last.usage
    assert whole.usage
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert len({part.id for part in (*parts, last)}) == 1


def test_fork_counts_on_every_token(client: Client) -> None:
    asked: dict[str, Any] = {"max_tokens": 20, "seed": 1, "ignore_eos": True}
    counts = {
        ratio: [token.fork_count for token in client.complete("forks", **asked, fork_ratio=ratio).tokens]
        for ratio in (1, 4)
    }
    assert counts[1] == [1] * 20
    assert len(counts[4]) == 20
    assert max(filter(None, counts[4])) > 1
    with client.stream("forks", **asked, fork_ratio=4) as stream:
        assert [token.fork_count for part in stream for token in part.tokens] == counts[4]


def test_a_scored_prompt(client: Client) -> None:
    answer = client.complete("score", max_tokens=0, echo=True, logprobs=2, return_token_ids=True)
    assert answer.text == "score"
    assert [(token.text, token.id, token.offset) for token in answer.tokens] == [
        (letter, ord(letter), place) for place, letter in enumerate("score")
    ]
    assert answer.tokens[0].logprob is None
    for token in answer.tokens[1:]:
        assert token.fork_count
        assert token.top_logprobs
        assert token.top_logprobs[token.text or ""] == token.logprob


def test_chats(client: Client) -> None:
    asked: dict[str, Any] = {"max_completion_tokens": 6, "seed": 2, "logprobs": True, "top_logprobs": 1}
    answer = client.chat(MESSAGES, **asked)
    assert answer.id.startswith("chatcmpl-")
    assert all(token.fork_count and token.logprob and token.text for token in answer.tokens)
    with client.stream_chat(MESSAGES, **asked) as stream:
        parts = list(stream)
    assert "".join(part.text for part in parts) == answer.text
    assert tuple(token for part in parts for token in part.tokens) == answer.tokens


def test_tokens_and_models(client: Client) -> None:
    assert client.tokenize("é🫧") == list("é🫧".encode())
    assert client.detokenize("é🫧".encode()) == "é🫧"
    (model,) = client.models()
    assert client.model("tiny") == model
    assert (model.id, model.max_model_len, model.fork_layers, model.parameters) == ("tiny", 64, (1, 2), 1)


def test_loaded_weights(serve: Serve, make_client: MakeClient, checkpoint: Path, tmp_path: Path) -> None:
    with serve(admin_keys=ApiKeys.of(["sk-admin"], "here")) as server:
        client = make_client(server.url)
        loaded = client.load_weights(checkpoint, admin_key="sk-admin")
        (model,) = client.models()
        assert (loaded.model, loaded.weights_version) == ("tiny", model.weights_version)
        assert loaded.previous_weights_version == model.weights_version  # the checkpoint is the served model's
        assert client.complete("a", max_tokens=1).system_fingerprint == loaded.system_fingerprint
        with pytest.raises(BadRequestError, match="no such folder"):
            client.load_weights(tmp_path / "nowhere", admin_key="sk-admin")
        with pytest.raises(UnauthorizedError):
            client.load_weights(checkpoint, admin_key="sk-other")


def test_a_real_stream_cut_anywhere(server: Running) -> None:
    body = {
        "prompt": "é",
        "max_tokens": 8,
        "seed": 1,
        "stream": True,
        "logprobs": 1,
        "logit_bias": {"195": 8, "169": 8},
    }
    with keeping_up(server):
        sent = server.client.post("/v1/completions", json=body).content
    whole = list(PartReader().feed(sent))
    assert len(whole) > 3
    for place in range(len(sent) + 1):
        reader = PartReader()
        assert [*reader.feed(sent[:place]), *reader.feed(sent[place:])] == whole
        reader.end()


def test_mistakes(client: Client) -> None:
    with pytest.raises(ModelNotFoundError):
        client.model("gpt-4")
    with pytest.raises(ModelNotFoundError):
        next(client.stream(model="gpt-4"))
    with pytest.raises(NotFoundError) as unknown:
        client.cancel("cmpl-1")
    assert unknown.value.request_id


def test_cancel(server: Running, client: Client) -> None:
    server.engine.hold(after=3)
    with client.stream("a", max_tokens=60, **GO_ON) as stream:
        client.cancel(next(stream).id)
        with pytest.raises(CompletionCancelledError) as ended:
            list(stream)
    assert (ended.value.status, ended.value.code) == (None, "cancelled")


def test_keys(serve: Serve, make_client: MakeClient) -> None:
    with serve(api_keys=ApiKeys.of(["sk-right"], "here")) as server:
        for key in (None, "sk-wrong"):
            with pytest.raises(UnauthorizedError):
                make_client(server.url, api_key=key).models()
        assert len(make_client(server.url, api_key="sk-right").models()) == 1


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch, server: Running) -> list[float]:
    """Seconds that clients would have waited; the server takes requests again meanwhile."""
    seconds: list[float] = []

    def sleep(pause: float) -> None:
        seconds.append(pause)
        server.service.worker.draining = False

    async def asleep(pause: float) -> None:
        sleep(pause)

    monkeypatch.setattr("thoughtbubbles_client.client.time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("thoughtbubbles_client.async_client.asyncio", SimpleNamespace(sleep=asleep))
    return seconds


def test_a_server_that_takes_nothing_at_present(
    server: Running, make_client: MakeClient, client: Client, paused: list[float]
) -> None:
    server.service.worker.draining = True
    with pytest.raises(ServiceUnavailableError) as refused:
        make_client(server.url, retry=ONCE).complete("a")
    assert (refused.value.code, refused.value.retry_after, paused) == ("draining", 1, [])
    assert client.complete("a", max_tokens=1).usage
    (pause,) = paused
    assert 1 <= pause <= 1.25


def test_a_server_that_says_nothing(server: Running, make_client: MakeClient) -> None:
    client = make_client(server.url, timeout=0.2)
    server.engine.hold(after=1)
    with pytest.raises(TimedOutError):
        list(client.stream("a", max_tokens=9, **GO_ON))
    server.engine.let_go()
    assert client.complete("a", max_tokens=2, timeout=30, **GO_ON).text == "AA"


def test_nobody_there(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UnreachableError, match=f"^http://127.0.0.1:{port}/v1/models: "):
        make_client(f"http://127.0.0.1:{port}", retry=ONCE).models()


@pytest.fixture
def dying_url() -> Iterator[str]:
    """A server that dies in its first answer."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\n: hi\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_one() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(head)

        thread = threading.Thread(target=serve_one)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(30)


def test_a_server_that_dies(dying_url: str, make_client: MakeClient) -> None:
    with pytest.raises(DisconnectedError):
        list(make_client(dying_url).stream("a"))


def assert_given_up(server: Running, held_after: int) -> None:
    """A request that was left during a blocked step is aborted after that step, and its pages are freed."""
    server.wait_until_asked()
    server.engine.let_go()
    eventually(lambda: not server.engine.has_work and server.engine.stats().cache_streams == 0)
    assert server.engine.steps == held_after + 1


def test_a_stream_that_is_left_is_computed_no_further(server: Running, client: Client) -> None:
    server.engine.hold(after=3)
    steps = server.engine.steps + 3
    with client.stream("a", max_tokens=60, **GO_ON) as stream:
        assert set(next(stream).text) == {"A"}
        server.engine.wait_until_held()
    assert_given_up(server, steps)


def test_a_loop_that_breaks_is_computed_no_further(server: Running) -> None:
    server.engine.hold(after=3)
    steps = server.engine.steps + 3
    with Client(server.url) as client:
        for part in client.stream("a", max_tokens=60, **GO_ON):
            assert set(part.text) == {"A"}
            server.engine.wait_until_held()
            break
        assert_given_up(server, steps)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_task_that_is_cancelled_is_computed_no_further(server: Running, streamed: bool) -> None:
    server.engine.hold(after=3)
    steps = server.engine.steps + 3

    async def ask(client: AsyncClient) -> None:
        if streamed:
            async for part in client.stream("a", max_tokens=60, **GO_ON):
                assert set(part.text) == {"A"}
        else:
            await client.complete("a", max_tokens=60, **GO_ON)

    async def leave() -> None:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(ask(client))
            await asyncio.to_thread(server.engine.wait_until_held)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(assert_given_up, server, steps)

    asyncio.run(leave())


def test_a_stream_that_has_ended_gives_its_connection_back(server: Running) -> None:
    with Client(server.url) as client:
        for _ in range(3):
            with closing(client.stream("a", max_tokens=2)) as stream:
                list(stream)
            with pytest.raises(ApiError):
                client.cancel("none")
        assert len(client._http._transport._pool.connections) == 1  # type: ignore[attr-defined]
