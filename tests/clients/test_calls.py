"""What the client sends."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

import thoughtbubbles_client
from tests.clients.harness import COMPLETE, DONE, STREAMED, Json, MakeClient
from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.requests import CompletionRequest
from thoughtbubbles_client import ChatOptions, CompletionOptions, Message


class Recorder(httpx.MockTransport):
    """A server that records its requests."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        super().__init__(self._note)

    def _note(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.content and json.loads(request.content).get("stream"):
            return httpx.Response(200, headers=STREAMED, content=DONE)
        return httpx.Response(200, content=COMPLETE.content)

    @property
    def body(self) -> Json:
        """Of the last request."""
        body: Json = json.loads(self.requests[-1].content)
        return body


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_what_may_be_asked_is_what_the_server_knows() -> None:
    """`n`, `seed` and all others of `server.schemas`; what is streamed is said by the method, `timeout` stays here."""
    elsewhere = {"stream", "stream_options", "prompt", "messages"}
    for options, request in ((CompletionOptions, CompletionRequest), (ChatOptions, ChatRequest)):
        assert options.__annotations__.keys() - {"timeout"} == request.model_fields.keys() - elsewhere


def test_options_go_out_as_they_are(make_client: MakeClient, recorder: Recorder) -> None:
    make_client(transport=recorder).complete([[1, 2]], fork_ratio=1.5, stop=("a", "b"), n=None, temperature=0)
    assert recorder.requests[-1].url == "http://server/v1/completions"
    assert recorder.body == {
        "prompt": [[1, 2]], "fork_ratio": 1.5, "stop": ["a", "b"], "temperature": 0, "return_fork_counts": True,
    }  # fmt: skip


def test_a_chat(make_client: MakeClient, recorder: Recorder) -> None:
    messages: list[Message] = [{"role": "user", "content": "?"}]
    make_client(transport=recorder).chat(messages, max_completion_tokens=2)
    assert recorder.requests[-1].url == "http://server/v1/chat/completions"
    assert recorder.body == {"messages": messages, "max_completion_tokens": 2, "return_fork_counts": True}


def test_streams_ask_for_their_usage(make_client: MakeClient, recorder: Recorder) -> None:
    client = make_client(transport=recorder, fork_counts=False)
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    list(client.stream("a"))
    assert recorder.body == {"prompt": "a", **asked}
    list(client.stream_chat([]))
    assert recorder.body == {"messages": [], **asked}


@pytest.mark.parametrize(
    ("client_says", "request_says", "sent"),
    [(True, None, {}), (True, False, {"return_fork_counts": False}), (False, True, {"return_fork_counts": True})],
)
def test_a_request_outdoes_its_client(
    make_client: MakeClient, recorder: Recorder, client_says: bool, request_says: bool | None, sent: Json
) -> None:
    make_client(transport=recorder, fork_counts=client_says).complete("a", return_fork_counts=request_says)
    assert recorder.body == {"prompt": "a", **sent}


@pytest.mark.parametrize("name", ["complete", "stream", "chat", "stream_chat"])
def test_an_unknown_option_is_a_mistake(make_client: MakeClient, recorder: Recorder, name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword arguments: max_token, x"):
        getattr(make_client(transport=recorder), name)("a", max_token=1, x=2)
    with pytest.raises(TypeError, match="unexpected keyword arguments: stream"):
        getattr(make_client(transport=recorder), name)("a", stream=True)
    assert recorder.requests == []


def test_ids_and_names_are_quoted(make_client: MakeClient, recorder: Recorder) -> None:
    client = make_client(transport=recorder)
    client.cancel("a/../b?c")
    assert recorder.requests[-1].url.raw_path == b"/v1/completions/a%2F..%2Fb%3Fc/cancel"
    client.model("org/model #1")
    assert recorder.requests[-1].url.raw_path == b"/v1/models/org%2Fmodel%20%231"


def test_who_asks(make_client: MakeClient, recorder: Recorder) -> None:
    make_client(transport=recorder).complete()
    assert "authorization" not in recorder.requests[-1].headers
    assert recorder.requests[-1].headers["user-agent"] == f"thoughtbubbles-client/{thoughtbubbles_client.__version__}"
    make_client(transport=recorder, api_key="sk-1").complete()
    assert recorder.requests[-1].headers["authorization"] == "Bearer sk-1"


def seconds(recorder: Recorder) -> tuple[float | None, float | None, float | None]:
    """To connect, to wait for bytes, and to wait for a connection of the client's own, as the last request had them."""
    timeout = recorder.requests[-1].extensions["timeout"]
    return timeout["connect"], timeout["read"], timeout["pool"]


def test_timeouts(make_client: MakeClient, recorder: Recorder) -> None:
    client = make_client(transport=recorder)
    client.complete()
    assert seconds(recorder) == (5, 600, None)
    client.complete(timeout=2)
    assert seconds(recorder) == (2, 2, None)
    list(client.stream(timeout=httpx.Timeout(7, connect=3)))
    assert seconds(recorder) == (3, 7, 7)
    client = make_client(transport=recorder, timeout=4)
    client.complete()
    assert seconds(recorder) == (4, 4, None)


@pytest.mark.parametrize("timeout", [math.inf, 1e20, 2**32 / 1000])
def test_a_timeout_that_sockets_cannot_count_is_none(
    make_client: MakeClient, recorder: Recorder, timeout: float
) -> None:
    """Of 2**32 milliseconds `poll` kept 0, and beyond the clock's range the request ended in an `OverflowError`."""
    make_client(transport=recorder).complete(timeout=timeout)
    assert seconds(recorder) == (None, None, None)
    make_client(transport=recorder, timeout=timeout).complete()
    assert seconds(recorder) == (None, None, None)


def test_without_a_timeout_a_client_waits_as_long_as_it_takes(make_client: MakeClient, recorder: Recorder) -> None:
    make_client(transport=recorder, timeout=None).complete()
    assert seconds(recorder) == (None, None, None)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(0, ValueError), (-1, ValueError), (math.nan, ValueError), ("3", TypeError), ((1, 2), TypeError)],
)
def test_what_is_no_timeout_is_refused_before_anything_is_sent(
    make_client: MakeClient, recorder: Recorder, timeout: float, error: type[Exception]
) -> None:
    with pytest.raises(error, match="timeout"):
        make_client(timeout=timeout)
    with pytest.raises(error, match="timeout"):
        make_client(transport=recorder).complete(timeout=timeout)
    assert not recorder.requests


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://server", "http://server/v1/completions"),
        ("http://server/", "http://server/v1/completions"),
        ("http://server/v1", "http://server/v1/completions"),
        ("http://server/v1/", "http://server/v1/completions"),
        ("https://server:8443/behind/a/proxy", "https://server:8443/behind/a/proxy/v1/completions"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/completions"),
    ],
)
def test_addresses(make_client: MakeClient, recorder: Recorder, url: str, asked: str) -> None:
    make_client(url, transport=recorder).complete()
    assert recorder.requests[-1].url == asked


@pytest.mark.parametrize("url", ["", "server:8000", "127.0.0.1:8000", "ftp://server", "http://", "http://a:b", "v1"])
def test_what_is_no_address(make_client: MakeClient, url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        make_client(url)


@pytest.mark.parametrize("key", ["sk-1\n", "sk-é", "sk\r\nx: y", "", " ", "sk-1 ", " sk-1"])
def test_a_key_that_cannot_be_sent_is_not_shown(make_client: MakeClient, key: str) -> None:
    with pytest.raises(ValueError, match=r"^api_key must be printable ASCII, not empty, without spaces around it$"):
        make_client(api_key=key)


def test_numbers_that_json_has_not_are_a_mistake(make_client: MakeClient, recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="JSON"):
        make_client(transport=recorder).complete(temperature=float("inf"))


def test_a_load_has_the_admin_key_for_its_own(make_client: MakeClient) -> None:
    loaded = {"model": "tiny", "weights_version": "b", "previous_weights_version": "a", "system_fingerprint": "x-b",
              "model_revision": None}  # fmt: skip
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json=loaded)

    client = make_client(api_key="sk-one", transport=httpx.MockTransport(answer))
    found = client.load_weights(Path("runs/notes/best"), admin_key="sk-admin")
    assert asdict(found) == loaded
    (request,) = requests
    assert (request.method, request.url) == ("POST", "http://server/admin/load")
    assert json.loads(request.content) == {"checkpoint": "runs/notes/best"}
    assert request.headers["authorization"] == "Bearer sk-admin"
    with pytest.raises(ValueError, match=r"^admin_key must be printable ASCII, not empty"):
        client.load_weights("runs/notes/best", admin_key="sk-ü")
