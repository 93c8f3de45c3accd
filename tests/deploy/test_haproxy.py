"""deploy/haproxy.cfg in front of two servers whose answers each test sets."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.haproxy_serve import CONFIGURATION, MOST_SERVERS, find_haproxy
from tests.server.harness import eventually

try:
    HAPROXY = find_haproxy()
except ValueError as error:
    pytest.skip(f"needs HAProxy: {error}", allow_module_level=True)

HUNDRED = "a hundred characters, so that what begins a prompt is longer than what tells two prompts apart, yes! "


@dataclass
class Server:
    """A server that counts what it is asked for."""

    status: int = 200
    breaks: bool = False
    """It closes the connection in place of an answer."""
    ready: int = 200
    asked: list[tuple[str, Any, str]] = field(default_factory=list)
    """Path, body and X-Forwarded-For of each request but those for /ready."""
    going_on: threading.Event = field(default_factory=threading.Event)
    """When set, a stream gets its second event."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the connection of a request that is not answered yet is closed."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/ready":
            _send(handler, self.ready)
            return
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        self.asked.append((handler.path, json.loads(body or "null"), handler.headers["x-forwarded-for"]))
        if self.breaks:
            handler.close_connection = True
        elif handler.path == "/stream":
            self._stream(handler)
        elif handler.path == "/silent":
            self._wait(handler)
        else:
            _send(handler, self.status)

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"9\r\ndata: 1\n\n\r\n")
        if self._wait(handler):
            handler.wfile.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    def _wait(self, handler: BaseHTTPRequestHandler) -> bool:
        """Wait until the answer may go on; false if the client left first."""
        handler.connection.settimeout(0.01)
        while not self.going_on.is_set():
            try:
                gone = not handler.connection.recv(1)
            except TimeoutError:
                continue
            except ConnectionResetError:
                gone = True
            if gone:
                self.left.set()
                handler.close_connection = True
                return False
        handler.connection.settimeout(None)
        return True


def _send(handler: BaseHTTPRequestHandler, status: int) -> None:
    handler.send_response(status)
    handler.send_header("content-length", "0")
    handler.end_headers()


@contextmanager
def listening(server: Server) -> Iterator[int]:
    """Run it, and give its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.answer(self)

        do_POST = do_GET  # noqa: N815 (the base class looks for it)

        def log_message(self, *_: object) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # HAProxy may close what it does not need
                super().handle_error(request, client_address)

    with Listener(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listener.server_port
        finally:
            listener.shutdown()
            thread.join()


@dataclass
class Both:
    """HAProxy and the servers behind it."""

    client: httpx.Client
    servers: list[Server]

    def asked(self) -> list[int]:
        """How many requests each server has had."""
        return [len(server.asked) for server in self.servers]

    def split(self, *bodies: dict[str, object]) -> list[int]:
        """How these requests are divided among the servers."""
        before = self.asked()
        for body in bodies:
            assert self.client.post("/v1/completions", json=body).status_code == 200
        return sorted(after - was for after, was in zip(self.asked(), before, strict=True))


@pytest.fixture
def both() -> Iterator[Both]:
    servers = [Server(), Server()]
    with ExitStack() as stack:
        ports = [stack.enter_context(listening(server)) for server in servers]
        client = stack.enter_context(proxied(*(f"127.0.0.1:{port}" for port in ports)))
        yield Both(client, servers)


@contextmanager
def proxied(*addresses: str, configuration: Path = CONFIGURATION) -> Iterator[httpx.Client]:
    """HAProxy before servers at these addresses, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bind = "{}:{}".format(*listener.getsockname())
    variables = {"BIND": bind} | {f"SERVER_{number}": address for number, address in enumerate(addresses, 1)}
    command = [HAPROXY, "-db", "-f", str(configuration)]
    with (
        subprocess.Popen(command, env=variables) as process,
        httpx.Client(base_url=f"http://{bind}", timeout=30) as client,
    ):
        try:
            eventually(lambda: reached(client))
            yield client
        finally:
            process.kill()


def reached(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/metrics").status_code)
    except httpx.ConnectError:
        return False


def refused() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return "{}:{}".format(*listener.getsockname())


def turns(question: str, number: int, *before: dict[str, str]) -> list[dict[str, str]]:
    """The messages of a conversation's turn, after those `before`."""
    said = [{"role": role, "content": f"{role} {i}"} for i in range(number) for role in ("assistant", "user")]
    return [*before, {"role": "user", "content": question}, *said]


SYSTEM = {"role": "system", "content": HUNDRED * 4}
ALIKE = {
    "prompts": lambda key, number: {"prompt": f"{key}{HUNDRED * 3}{number}"},
    "token ids": lambda key, number: {"prompt": [*key.encode(), *range(100, 200), number]},
    "a cache key": lambda key, number: {"prompt": f"{number}{HUNDRED * 3}", "prompt_cache_key": key},
    "the turns of a conversation": lambda key, number: {"messages": turns(key, number)},
    "its turns after instructions": lambda key, number: {"messages": turns(key, number, SYSTEM)},
    "a prompt longer than the buffer": lambda key, number: {"prompt": f"{key}{HUNDRED * 2000}{number}"},
}


@pytest.mark.parametrize("form", ALIKE)
def test_requests_that_begin_alike_go_to_one_server_and_others_to_both(both: Both, form: str) -> None:
    for key in "abcdefgh":
        assert both.split(*(ALIKE[form](key, number) for number in range(3))) == [0, 3]
    assert min(both.asked()) > 0


def test_nearly_as_many_requests_run_on_each_server(both: Both) -> None:
    """One key for all: the tenth part more than the mean stays together."""
    with ExitStack() as stack:
        for _ in range(20):
            request = both.client.build_request("POST", "/stream", json={"prompt_cache_key": "all"})
            stack.callback(both.client.send(request, stream=True).close)
        assert sorted(both.asked()) == [9, 11]
        for server in both.servers:
            server.going_on.set()


def test_an_event_is_sent_as_it_comes(both: Both) -> None:
    with both.client.stream("POST", "/stream", json={}) as response:
        events = response.iter_raw()
        assert next(events) == b"data: 1\n\n"
        for server in both.servers:
            server.going_on.set()  # not before the first had arrived
        assert next(events) == b"data: 2\n\n"


def test_a_server_learns_the_clients_address(both: Both) -> None:
    both.split({"prompt": "a"})
    ((_, _, address),) = [asked for server in both.servers for asked in server.asked]
    assert address == "127.0.0.1"


@pytest.mark.parametrize("status", [404, 503])
def test_what_one_server_cannot_answer_another_is_asked(both: Both, status: int) -> None:
    both.servers[0].status = status
    keys = "abcdefgh"
    assert {both.client.post("/v1/completions/x/cancel", json={"prompt": key}).status_code for key in keys} == {200}
    assert both.asked()[1] == len(keys)
    assert 0 < both.asked()[0] < len(keys)  # the others went to the right one at once


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_an_error_of_all_servers_comes_through(both: Both, status: int) -> None:
    for server in both.servers:
        server.status = status
    assert both.client.post("/v1/completions", json={"prompt": "a"}).status_code == status


def test_a_request_of_which_a_server_dies_is_not_asked_of_the_other(both: Both) -> None:
    both.split({"prompt": "a"})  # connections that HAProxy could use again
    for server in both.servers:
        server.asked.clear()
        server.breaks = True
    response = both.client.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "server_ended"
    assert response.headers["retry-after"] == "1"
    assert sum(both.asked()) == 1


def test_a_server_that_drains_gets_no_more_requests(both: Both) -> None:
    both.servers[0].ready = 503
    eventually(lambda: both.split(*({"prompt": key} for key in "abcdefgh")) == [0, 8])


def test_a_server_that_does_not_listen_is_left_out() -> None:
    server = Server()
    with listening(server) as port, proxied(refused(), f"127.0.0.1:{port}") as client:
        assert {client.post("/v1/completions", json={"prompt": key}).status_code for key in "abcdefgh"} == {200}


def test_the_requests_of_a_server_that_is_gone_go_to_the_other_although_it_is_busy() -> None:
    """Before a check has found out: one refused connection is enough."""
    gone, left = Server(), Server()
    with ExitStack() as stack:
        ending = stack.enter_context(ExitStack())
        ports = [ending.enter_context(listening(gone)), stack.enter_context(listening(left))]
        client = stack.enter_context(proxied(*(f"127.0.0.1:{port}" for port in ports)))
        stack.callback(left.going_on.set)
        ending.close()
        for number in range(20):
            request = client.build_request("POST", "/stream", json={"prompt": str(number)})
            response = client.send(request, stream=True)
            stack.callback(response.close)
            assert response.status_code == 200
    assert len(left.asked) == 20


def test_a_body_that_does_not_come_is_refused_in_the_apis_form(tmp_path: Path) -> None:
    impatient = tmp_path / "haproxy.cfg"
    impatient.write_text(CONFIGURATION.read_text(encoding="utf-8").replace("http-request 30s", "http-request 100ms"))
    with (
        proxied(refused(), configuration=impatient) as proxy,
        socket.create_connection((proxy.base_url.host, proxy.base_url.port or 0)) as client,
    ):
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n")
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_without_a_server_the_error_has_the_apis_form() -> None:
    with proxied(refused()) as client:
        response = client.post("/v1/completions", json={})
    assert response.status_code == 503
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/metrics", "/admin/load"])
def test_what_is_each_servers_own_is_not_asked_of_any(both: Both, path: str) -> None:
    assert both.client.get(path).json()["error"]["code"] == "not_found"
    assert both.asked() == [0, 0]


@pytest.mark.parametrize("path", ["/stream", "/silent"])
def test_when_a_client_leaves_its_server_learns_of_it(both: Both, path: str) -> None:
    with socket.create_connection((both.client.base_url.host, both.client.base_url.port or 0)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        eventually(lambda: sum(both.asked()) == 1)
    assert any(server.left.wait(30) for server in both.servers if server.asked)
    for server in both.servers:
        server.going_on.set()


def test_it_has_a_line_for_each_server() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert [text.count(f'"${{SERVER_{number}}}"') for number in range(1, MOST_SERVERS + 2)] == [1] * MOST_SERVERS + [0]
