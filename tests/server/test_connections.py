"""Every connection is closed at a limit, every close is counted, and a refused client learns why."""

import json
import math
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest

from tests.server.harness import Json, Running, Serve, connected, eventually, read
from tests.server.test_disconnects import body_of
from tests.server.test_operation import samples
from thoughtbubbles.server import lifecycle, sockets
from thoughtbubbles.server.http import connections
from thoughtbubbles.server.keys import ApiKeys

KEYS = ApiKeys.of(["sk-one"], "here")


def post(body: bytes, *headers: str, path: str = "/v1/completions", version: str = "1.1") -> bytes:
    head = [f"POST {path} HTTP/{version}", "host: test", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "host: test", *headers, "", ""]).encode()


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer that is alone on its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def rest(client: socket.socket) -> bytes:
    """What still comes before the connection ends, in whatever way."""
    told = b""
    with suppress(ConnectionError):
        while more := client.recv(1 << 16):
            told += more
    return told


def one_answer(client: socket.socket) -> bytes:
    """The next answer on a connection that stays open."""
    told, size = b"", None
    while size is None or len(parts(told)[2]) < size:
        more = client.recv(1 << 16)
        assert more, told
        told += more
        if size is None and b"\r\n\r\n" in told:
            size = int(parts(told)[1]["content-length"])
    return told


def error(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer that is an error in OpenAI's form, with an id and nothing behind it."""
    status, headers, body = parts(answer)
    assert headers["x-request-id"]
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    told: Json = json.loads(body)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return status, told["code"]


def closed(server: Running, reason: str) -> float:
    return samples(server).get(("http_connections_closed_total", reason), 0)


def wait_until_alone(server: Running) -> None:
    """Wait until the connection that requests /metrics is the only one."""
    eventually(lambda: samples(server)["http_connections",] == 1)


def test_a_body_that_does_not_come_ends_the_connection_on_every_path(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer needs no body and comes at once; the connection does not stay open for the rest of it."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    heads = [
        ("POST /v1/completions HTTP/1.1", 401),
        ("POST /v1/completions/x/cancel HTTP/1.1\r\nauthorization: Bearer sk-one", 404),
        ("POST /nowhere HTTP/1.1\r\nauthorization: Bearer sk-one", 404),
        ("POST /health HTTP/1.1", 405),
        ("GET /health HTTP/1.1", 200),
    ]
    framings = [("content-length: 100", "{"), ("transfer-encoding: chunked", "1\r\n{\r\n")]
    with serve(body_timeout_seconds=1, api_keys=KEYS) as server:
        for framing, begun in framings:
            clients = [connected(server) for _ in heads]
            for client, (head, _) in zip(clients, heads, strict=True):
                client.sendall(f"{head}\r\nhost: test\r\n{framing}\r\n\r\n{begun}".encode())
            assert [parts(one_answer(client))[0] for client in clients] == [status for _, status in heads]
            assert [read(client) for client in clients] == [b""] * len(heads)
            for client in clients:
                client.close()
        assert closed(server, "body_timeout") == len(framings) * len(heads)
        wait_until_alone(server)


def test_a_body_that_comes_late_leaves_the_connection_open(serve: Serve) -> None:
    with serve() as server, connected(server) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\n12")
        assert parts(one_answer(client))[0] == 404
        client.sendall(b"34" + get("/health", "connection: close"))
        assert parts(read(client))[0] == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/nowhere"])
def test_an_oversized_post_that_is_sent_to_its_end_is_answered_every_time(serve: Serve, path: str) -> None:
    """The client reads when it has sent all, as most do: a connection closed before that would be reset."""
    with serve(max_body_bytes=2000) as server:
        for _ in range(10):
            with connected(server) as client:
                client.sendall(post(b" " * 5_000_000, "connection: close", path=path))
                assert error(read(client))[0] == (413 if path == "/v1/completions" else 404)


def test_a_body_without_end_is_not_read_to_its_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_DISCARDED_BYTES", 100_000)
    with serve(max_body_bytes=2000, body_timeout_seconds=300) as server, connected(server) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"ffff\r\n" + b" " * 0xFFFF + b"\r\n"
        with suppress(ConnectionError):
            while True:
                client.sendall(chunk)
        assert closed(server, "body_too_large") == 1


@pytest.fixture
def tight(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server whose sockets buffer little, with short time limits."""
    listen = sockets.listen

    def small(host: str, port: int) -> socket.socket:
        listener = listen(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    monkeypatch.setattr("tests.server.harness.listen", small)
    with serve(write_timeout_seconds=1) as server:
        yield server


def reading_little(server: Running) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(30)
    client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return client


@pytest.mark.parametrize("requests", [1, 40], ids=["all is written", "more is to be written"])
def test_a_client_that_never_reads_is_cut_off(tight: Running, requests: int) -> None:
    page = tight.client.get("/openapi.json").content
    assert 20_000 < len(page) < connections.MAX_HEAD_BYTES, "one answer fits the server's own buffer, and no socket's"
    clients = [reading_little(tight) for _ in range(5)]
    before = closed(tight, "write_timeout")
    for client in clients:
        client.sendall(get("/openapi.json") * requests)
    eventually(lambda: closed(tight, "write_timeout") == before + len(clients))
    wait_until_alone(tight)
    for client in clients:
        assert len(rest(client)) < len(page) * requests
        client.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel does not end connections by itself")
def test_a_client_that_reads_nothing_of_what_the_kernel_holds_is_cut_off(serve: Serve) -> None:
    """All of the answer is written, as far as the server can see: without it the connection would be an idle one."""
    with serve(write_timeout_seconds=1) as server, reading_little(server) as client:
        client.sendall(get("/openapi.json"))
        eventually(lambda: closed(server, "write_timeout") == 1)
        wait_until_alone(server)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("seconds", [2**31 / 1000, 1e300, math.inf])
def test_a_write_timeout_that_the_kernel_cannot_count(serve: Serve, seconds: float) -> None:
    """It counts milliseconds in 31 bits. With more, a connection had no limits and uvloop's had no answer, either."""
    with serve(write_timeout_seconds=seconds) as server:
        assert "\nthoughtbubbles_http_connections 1.0\n" in server.client.get("/metrics").text


def test_a_stream_that_nobody_reads_ends_its_generation(tight: Running) -> None:
    left = tight.service.metrics.disconnects._value.get()
    with reading_little(tight) as client:
        body = body_of(stream=True, prompt=["x"] * 16, max_tokens=60, logprobs=20, echo=True, ignore_eos=True)
        tight.engine.hold(after=25)
        client.sendall(post(body))
        eventually(lambda: closed(tight, "write_timeout") == 1)
        tight.engine.let_go()
        eventually(lambda: tight.service.metrics.disconnects._value.get() == left + 1)
        eventually(tight.service.worker.idle.is_set)


def test_a_client_that_reads_slowly_is_served(tight: Running) -> None:
    with reading_little(tight) as client:
        client.sendall(get("/openapi.json", "connection: close"))
        told = b""
        while more := client.recv(1000):
            told += more
        assert parts(told)[2] == tight.client.get("/openapi.json").content


def test_an_idle_connection_is_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "IDLE_SECONDS", 0.5)
    with serve() as server, connected(server) as client:
        client.sendall(get("/health"))
        assert parts(read(client))[0] == 200
        assert closed(server, "idle") >= 1


@pytest.mark.parametrize("sent", [b"", b"GET /health HT"])
def test_a_head_that_does_not_come_is_counted(serve: Serve, sent: bytes) -> None:
    with serve(body_timeout_seconds=1) as server, connected(server) as client:
        client.sendall(sent)
        assert read(client) == b""
        assert closed(server, "head_timeout") == 1


def test_connections_above_the_limit_are_told_so_and_may_ask_for_health(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "EXTRA_CONNECTIONS", 2)
    with serve(max_connections=2) as server:
        server.client.close()
        eventually(lambda: server.service.metrics.connections._value.get() == 0)
        served = [connected(server) for _ in range(2)]
        eventually(lambda: server.service.metrics.connections._value.get() == 2)
        spare = [connected(server) for _ in range(2)]
        for path in ("/health", "/ready", "/metrics"):
            spare[0].sendall(get(path))
            assert parts(one_answer(spare[0]))[0] == 200
        spare[0].sendall(post(b"{}"))
        answer = read(spare[0])
        assert error(answer) == (503, "too_many_connections")
        assert parts(answer)[1]["retry-after"] == "1"
        eventually(lambda: server.service.metrics.connections._value.get() == 3)
        spare.append(connected(server))
        eventually(lambda: server.service.metrics.connections._value.get() == 4)
        with connected(server) as client:
            assert rest(client) == b""
        served[0].sendall(post(b'{"max_tokens": 1}', "connection: close"))
        assert parts(read(served[0]))[0] == 200, "who came within the limit is served"
        for client in (*served, *spare):
            client.close()
        eventually(lambda: server.service.metrics.connections._value.get() == 0)
        with connected(server) as client:
            client.sendall(post(b'{"max_tokens": 1}', "connection: close"))
            assert parts(read(client))[0] == 200, "there is room again"
        rejected = server.service.metrics.rejected.labels(reason="too_many_connections")._value.get()
        assert rejected == 1
        assert server.service.metrics.connections_closed.labels(reason="limit")._value.get() == 1


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
     b"GET http://[ HTTP/1.1\r\nhost: a\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
     b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"],
    ids=["TLS", "text", "header", "target", "length", "two framings"],
)  # fmt: skip
def test_what_is_no_http_is_answered_like_any_mistake(server: Running, sent: bytes) -> None:
    before = closed(server, "invalid_http")
    with connected(server) as client:
        client.sendall(sent)
        assert error(read(client)) == (400, "invalid_http")
    assert closed(server, "invalid_http") == before + 1


def test_a_chunk_that_is_none_is_answered_under_the_clients_id(server: Running) -> None:
    with connected(server) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nx-request-id: mine\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
        )
        answer = read(client)
    assert error(answer) == (400, "invalid_http")
    assert parts(answer)[1]["x-request-id"] == "mine"


def test_what_is_no_http_behind_a_request_does_not_get_into_its_answer(server: Running) -> None:
    server.engine.hold(after=1)
    with connected(server) as client:
        client.sendall(post(body_of(stream=True, logit_bias={"65": 100})))
        told = client.recv(1 << 16)
        server.engine.wait_until_held()
        client.sendall(b"no http\r\n\r\n")
        told += read(client)
    assert told.count(b"HTTP/1.1") == 1
    assert told.startswith(b"HTTP/1.1 200 OK")
    server.engine.let_go()
    eventually(server.service.worker.idle.is_set)


@pytest.mark.parametrize(("size", "status"), [(60_000, 200), (100_000, 431)])
@pytest.mark.parametrize("headers", [1, 100])
def test_a_head_has_a_largest_size(server: Running, size: int, status: int, headers: int) -> None:
    """Also when it comes whole."""
    each = size // headers
    lines = [f"x-{number}: {'y' * each}" for number in range(headers)]
    with connected(server) as client:
        client.sendall(get("/health", "connection: close", *lines))
        answer = read(client)
    assert parts(answer)[0] == status
    if status == 431:
        assert error(answer) == (431, "headers_too_large")


def test_a_path_counts_as_head(server: Running) -> None:
    with connected(server) as client:
        client.sendall(get("/" + "a" * 100_000))
        assert error(read(client)) == (431, "headers_too_large")


def test_a_head_without_end(serve: Serve) -> None:
    with serve(body_timeout_seconds=300) as server, connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 100_000)
        assert error(read(client)) == (431, "headers_too_large")


def test_headers_behind_a_body_count_as_head(server: Running) -> None:
    trailers = b"".join(b"x-%d: y\r\n" % number for number in range(9000))
    with connected(server) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + trailers
        )
        assert error(read(client)) == (431, "headers_too_large")


def test_a_stream_over_http_1_0_has_no_chunks(server: Running) -> None:
    with connected(server) as client:
        client.sendall(post(body_of(stream=True, max_tokens=3), version="1.0"))
        _, headers, body = parts(read(client))
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert re.fullmatch(rb"(data: \{[^\r\n]*\}\n\n)+data: \[DONE\]\n\n", body)


@pytest.mark.parametrize("path", ["/health", "/"])
def test_an_answer_over_http_1_0_has_its_length(server: Running, path: str) -> None:
    with connected(server) as client:
        client.sendall(get(path, version="1.0"))
        status, headers, body = parts(read(client))
    assert (status, int(headers["content-length"])) == (200, len(body))


@pytest.mark.parametrize("behind", [get("/health"), get("/health") * 3], ids=["one", "three"])
def test_leaving_ends_the_request_that_others_wait_behind(server: Running, behind: bytes) -> None:
    left = server.service.metrics.disconnects._value.get()
    server.engine.hold(after=1)
    with connected(server) as client:
        client.sendall(post(body_of(stream=True, logit_bias={"65": 100})) + behind)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
        server.engine.wait_until_held()
    eventually(lambda: server.service.metrics.disconnects._value.get() == left + 1)
    server.engine.let_go()


def test_a_connection_serves_many_requests(server: Running) -> None:
    """One after the other and several at once: the limits are each request's own."""
    with connected(server) as client:
        for _ in range(3):
            client.sendall(get("/health"))
            assert parts(one_answer(client))[0] == 200
        client.sendall(get("/health") * 20 + get("/health", "connection: close"))
        assert read(client).count(b"HTTP/1.1 200 OK") == 21


def test_a_handshake_for_a_websocket_is_answered_as_a_request(server: Running) -> None:
    upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-key: eA==", "sec-websocket-version: 13")
    with connected(server) as client:
        client.sendall(get("/health", *upgrade))
        assert parts(one_answer(client))[0] == 200


@pytest.mark.parametrize("cuts", [(), (40,), (-2,), (40, -2)], ids=["whole", "in_the_head", "in_the_body", "in_both"])
def test_a_body_behind_an_offer_of_http_2_is_read(server: Running, cuts: tuple[int, ...]) -> None:
    """Java's client offers HTTP/2 so in its first request, and goes on in HTTP/1.1 on the same connection."""
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAB")
    request = post(body_of(max_tokens=1), *offer)
    with connected(server) as client:
        for _ in range(2):
            for start, end in pairwise((0, *(cut % len(request) for cut in cuts), len(request))):
                client.sendall(request[start:end])
                time.sleep(0.05)  # a packet of its own
            assert parts(one_answer(client))[0] == 200
        client.sendall(request + get("/health", *offer) + request + get("/health", "connection: close"))
        assert read(client).count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize(
    ("target", "refusal"), [("a:80", (400, "invalid_http")), ("http://a/health", (405, "method_not_allowed"))]
)
@pytest.mark.parametrize("offer", [(), ("connection: upgrade", "upgrade: h2c")], ids=["plain", "offer"])
def test_a_tunnel_is_refused(server: Running, target: str, refusal: tuple[int, str], offer: tuple[str, ...]) -> None:
    with connected(server) as client:
        client.sendall(get(target, *offer, method="CONNECT"))
        assert error(one_answer(client)) == refusal
