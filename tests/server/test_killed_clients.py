"""Client processes killed with SIGKILL in every state of their request: all pages are freed, and counts add up."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.server.harness import Running, Serve, eventually
from tests.server.test_operation import assert_law, samples
from thoughtbubbles.server.keys import ApiKeys

CLIENT = """
import socket, sys, time
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(sys.stdin.buffer.read())
time.sleep(600)
"""
BODY = {"prompt": "leaving", "max_tokens": 4, "logit_bias": {"97": 100}}
WRAPPED = {"cors_origins": ("https://a",), "api_keys": ApiKeys.of(["sk-one"], "here")}
STATES = ["queued", "prefill", "decode", "last token"]


def start(server: Running, *, stream: bool) -> subprocess.Popen[bytes]:
    """Start a process that sends a request and waits."""
    body = json.dumps({**BODY, "stream": stream}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\nauthorization: Bearer sk-one\r\n"
    process = subprocess.Popen([sys.executable, "-ISc", CLIENT, server.url.rpartition(":")[2]], stdin=subprocess.PIPE)
    process.stdin.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    process.stdin.close()
    return process


def reach(state: str, server: Running, asking: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Start a client and wait until its request is in this state, behind another one in the queue."""
    if state != "queued":
        server.engine.hold(after=STATES.index(state) + (state == "last token") - 1 if state != "prefill" else 0)
        client = asking()
        server.engine.wait_until_held()
        return client
    server.engine.hold()
    asking()
    server.engine.wait_until_held()
    client = asking()
    server.wait_until_asked()
    server.engine.pass_step()
    server.engine.wait_until_held()
    assert server.service.metrics.meter.snapshot.stats.num_requests_waiting == 1
    return client


@pytest.mark.sample(6)
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("state", STATES)
def test_a_client_that_is_killed(serve: Serve, state: str, stream: bool, wrapped: bool) -> None:
    clients: list[subprocess.Popen[bytes]] = []
    with serve(max_batch_size=1, **(WRAPPED if wrapped else {})) as server:

        def asking() -> subprocess.Popen[bytes]:
            clients.append(start(server, stream=stream))
            return clients[-1]

        left = server.service.metrics.disconnects._value.get()
        reach(state, server, asking).kill()
        eventually(lambda: server.service.metrics.disconnects._value.get() == left + 1)
        server.engine.let_go()
        outcome = {
            "queued": {"length": 1, "abort": 1},
            "last token": {"length": 1},
        }.get(state, {"abort": 1})
        meter = server.service.metrics.meter
        eventually(lambda: {name: n for name, n in meter.snapshot.finished.items() if n} == outcome)
        eventually(server.service.worker.idle.is_set)
        found = samples(server)
        assert_law(found)
        assert found["num_requests_running",] == found["num_requests_waiting",] == found["cache_streams",] == 0
        server.engine.cache.check_integrity()
    for client in clients:
        client.kill()
        client.wait()
