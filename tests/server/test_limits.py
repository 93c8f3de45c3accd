"""What is cut off: requests that take too long, senders that are too slow, pages of other origins."""

import httpx
import pytest

from tests.server.harness import Running, Serve, connected, events, eventually, read
from tests.server.test_operation import assert_law, samples
from thoughtbubbles.server.keys import ApiKeys


def finished(server: Running) -> dict[str, int]:
    return {reason: count for reason, count in server.service.metrics.meter.snapshot.finished.items() if count}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_time_limit_of_a_whole_answer(serve: Serve, steps: int) -> None:
    with serve(request_timeout_seconds=0.3) as server:
        server.engine.hold(after=steps)
        response = server.client.post("/v1/completions", json={"n": 2, "max_tokens": 40, "ignore_eos": True})
        assert (response.status_code, response.json()["error"]["code"]) == (408, "timeout")
        assert response.headers["x-should-retry"] == "false"
        server.engine.let_go()
        eventually(lambda: finished(server) == {"timeout": 2})
        assert server.engine.stats().num_requests_running == 0
        assert_law(samples(server))
        assert server.complete(max_tokens=1)


def test_the_time_limit_of_a_stream(serve: Serve) -> None:
    with serve(request_timeout_seconds=0.3) as server:
        server.engine.hold(after=2)
        with events(server, max_tokens=40, ignore_eos=True) as told:
            *_, error, done = told
        assert '"code":"timeout"' in error
        assert done == "[DONE]"
        server.engine.let_go()
        eventually(lambda: finished(server) == {"timeout": 1})
        assert samples(server)["request_finished_total", "timeout"] == 1
        assert samples(server)["stream_disconnects_total",] == 0


def test_no_time_limit(serve: Serve) -> None:
    with serve(request_timeout_seconds=float("inf")) as server:
        assert server.complete(max_tokens=3)


def test_a_body_that_does_not_come(serve: Serve) -> None:
    with serve(body_timeout_seconds=1) as server, connected(server) as client:
        client.sendall(b'POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{"prompt": "')
        told = read(client)  # to the end: the connection is closed, for the rest of the body may still come
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in told
        assert samples(server)["request_rejected_total", "request_timeout"] == 1


def test_a_slow_answer_is_no_slow_sender(serve: Serve) -> None:
    """The limit on the body is over when the body is there."""
    with serve(body_timeout_seconds=1) as server:
        server.engine.hold(after=1)
        with events(server, max_tokens=3, logit_bias={"97": 100}) as told:
            next(told)
            server.engine.wait_until_held()
            eventually(lambda: server.service.worker.step_seconds > 1.5)
            server.engine.let_go()
            assert list(told)[-1] == "[DONE]"


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: te"])
def test_a_head_that_does_not_come(serve: Serve, sent: bytes) -> None:
    with serve(body_timeout_seconds=1) as server, connected(server) as client:
        client.sendall(sent)
        assert read(client) == b""


def test_a_second_head_that_does_not_come(serve: Serve) -> None:
    with serve(body_timeout_seconds=1) as server, connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        client.sendall(b"GET /health HTTP/1.1\r\nhost")
        assert b"HTTP/1.1" not in read(client)


def test_other_origins_are_told_nothing_unless_set(server: Running) -> None:
    response = server.client.get("/v1/models", headers={"origin": "https://a"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_origins_that_are_set(serve: Serve) -> None:
    keys = ApiKeys.of(["sk-one"], "here")
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with serve(cors_origins=("https://a",), api_keys=keys) as server:
        url = f"{server.url}/v1/completions"
        preflight = httpx.options(url, headers={"origin": "https://a", **asking})
        assert preflight.status_code == 200, "a browser shows no key when it asks"
        assert preflight.headers["access-control-allow-origin"] == "https://a"
        assert httpx.options(url, headers={"origin": "https://b", **asking}).status_code == 400
        refused = httpx.post(url, headers={"origin": "https://a"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://a")
        assert "x-request-id" in refused.headers["access-control-expose-headers"]
