"""Two servers behind HAProxy, as `python -m deploy.haproxy_serve` starts them: one is killed, one drains, all drain."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError

from deploy import haproxy_serve
from deploy.haproxy_serve import find_haproxy
from tests.deploy import fleets
from tests.deploy.fleets import (
    BATCH,
    CLIENTS,
    LONG,
    MODEL,
    ROOT,
    START_SECONDS,
    STORY,
    check_leaving,
    eventually,
    outcomes,
)
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.settings import ServerSettings

try:
    find_haproxy()
except ValueError as error:
    pytest.skip(f"needs HAProxy: {error}", allow_module_level=True)

SERVER = "thoughtbubbles.server"
SERVERS = 2
ENVIRONMENT = {"THOUGHTBUBBLES_MAX_BATCH_SIZE": str(BATCH), "THOUGHTBUBBLES_DRAIN_SECONDS": "60"}


class Fleet(fleets.Fleet):
    """HAProxy, and the servers at the two ports after its own."""

    def samples(self, name: str) -> dict[str, float]:
        """A metric of each server that answers, its labels added up."""
        host, _, port = self.url.rpartition(":")
        seen = {}
        for number in (1, 2):
            try:
                page = httpx.get(f"{host}:{int(port) + number}/metrics").text
            except httpx.TransportError:
                continue  # it is starting
            found = re.findall(rf"^thoughtbubbles_{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
            seen[str(number)] = sum(map(float, found))
        return seen

    def up(self) -> int:
        """How many servers have an engine that runs."""
        return int(sum(self.samples("engine_up").values()))

    def used(self) -> int:
        """To how many servers HAProxy gives requests: it learns a moment later than `up` that one is ready."""
        if self.up() < SERVERS:
            return 0
        before = self.samples("request_finished_total")
        for number in range(16):  # of which each server has some, for they are hashed
            self.http.post("/v1/completions", json={"prompt": f"{number}", "max_tokens": 1})
        after = self.samples("request_finished_total")
        return sum(after[name] > before[name] for name in before.keys() & after.keys())

    def server(self, number: int) -> int:
        """Its process id."""
        (pid,) = self.processes(f"{SERVER} .*--port {int(self.url.rpartition(':')[2]) + number}$")
        return pid


@pytest.fixture(scope="module")
def fleet() -> Iterator[fleets.Fleet]:
    port = fleets.free_port(2)
    options = ["--servers", "2", "--threads", "1"]
    with fleets.running(Fleet, "deploy.haproxy_serve", *options, port=port, environment=ENVIRONMENT) as started:
        assert isinstance(started, Fleet)
        eventually(lambda: started.used() == SERVERS, START_SECONDS)
        yield started


@pytest.mark.slow
def test_an_answer_is_the_same_whole_and_streamed(fleet: Fleet) -> None:
    client = fleet.openai
    asked = {"model": MODEL, "prompt": STORY, "max_tokens": 16, "seed": 1}
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    assert client.completions.create(**asked).choices[0].text == streamed


@pytest.mark.slow
def test_a_refusal_and_its_request_id_come_through(fleet: Fleet) -> None:
    response = fleet.http.post("/v1/completions", json={"prompt": 1.5}, headers={"x-request-id": "mine"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert response.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.slow
def test_the_turns_of_a_conversation_find_their_prefix_cached(fleet: Fleet) -> None:
    hits = sum(fleet.samples("prefix_cache_hits_total").values())
    text = STORY * 4
    for _ in range(4):
        text += fleet.openai.completions.create(model=MODEL, prompt=text, max_tokens=4).choices[0].text + STORY
    assert sum(fleet.samples("prefix_cache_hits_total").values()) - hits > 3 * 4 * len(STORY.split())


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_request(fleet: Fleet, stream: bool) -> None:
    check_leaving(fleet, stream=stream)


@pytest.mark.slow
def test_whichever_server_has_it_a_completion_can_be_cancelled(fleet: Fleet) -> None:
    for number in range(4):
        stream = fleet.openai.completions.create(model=MODEL, prompt=f"{number} {STORY}", stream=True, **LONG)
        name = next(iter(stream)).id
        assert fleet.http.post(f"/v1/completions/{name}/cancel").json() == {"id": name, "cancelled": True}
        with pytest.raises(APIError, match="cancelled"):
            list(stream)
    assert fleet.http.post("/v1/completions/nobody/cancel").status_code == 404


@pytest.mark.slow
def test_every_request_has_an_outcome_when_a_server_is_killed(fleet: Fleet) -> None:
    seen = asyncio.run(outcomes(fleet, CLIENTS, lambda: os.kill(fleet.server(1), signal.SIGKILL)))
    assert seen.total() == CLIENTS
    assert set(seen) == {"done length", "connection broken", "status 502, again after 1 s"}, seen
    assert seen["done length"] >= CLIENTS // 2 - 1  # the other server's, which has at most a tenth fewer
    eventually(lambda: fleet.used() == SERVERS, START_SECONDS)


@pytest.mark.slow
def test_one_server_drains_and_starts_again_and_no_request_fails(fleet: Fleet) -> None:
    before = fleet.server(1)

    def drain() -> None:
        os.kill(before, signal.SIGTERM)
        for number in range(8):
            assert fleet.openai.completions.create(model=MODEL, prompt=f"{number}", max_tokens=1).usage

    assert asyncio.run(outcomes(fleet, CLIENTS, drain)) == {"done length": CLIENTS}
    eventually(lambda: before not in fleet.processes(SERVER) and fleet.used() == SERVERS, START_SECONDS)


@pytest.mark.slow
def test_sigterm_lets_what_runs_finish(fleet: Fleet) -> None:
    seen = asyncio.run(outcomes(fleet, CLIENTS, fleet.process.terminate))
    assert seen == {"done length": CLIENTS}
    assert fleet.process.wait(60) == 0
    assert fleet.processes("") == []


@pytest.mark.slow
def test_it_ends_when_no_server_can_use_its_settings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.haproxy_serve", "--servers", "2", "--checkpoint", str(tmp_path)]
    command += ["--port", str(fleets.free_port(2))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert ended.returncode == 2
    assert str(tmp_path) in ended.stderr


def test_it_ends_when_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "deploy.haproxy_serve", "--port", str(listener.getsockname()[1])]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert ended.returncode == 1
    assert "HAProxy ended with 1" in ended.stderr


def fleet_of(servers: int, visible: str | None = None, **settings: object) -> haproxy_serve.Fleet:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return haproxy_serve.Fleet.of(servers, ServerSettings(**settings), ["--max-batch-size", "8"], environment)


def test_each_server_has_a_port_and_a_gpu_of_its_own() -> None:
    made = fleet_of(2, device="cuda", port=9000)
    for number, device in (1, "0"), (2, "1"):
        command, variables = made.server(number)
        assert command[1:] == [
            "-m", SERVER, "--max-batch-size", "8", "--host", "127.0.0.1", "--port", str(9000 + number)
        ]  # fmt: skip
        assert variables == os.environ | {"CUDA_VISIBLE_DEVICES": device}
    assert made.proxy()[1] == {"BIND": "127.0.0.1:9000", "SERVER_1": "127.0.0.1:9001", "SERVER_2": "127.0.0.1:9002"}


def test_servers_have_the_gpus_that_are_visible() -> None:
    made = fleet_of(2, "3,GPU-5", device="cuda")
    assert [made.server(number)[1]["CUDA_VISIBLE_DEVICES"] for number in (1, 2)] == ["3", "GPU-5"]
    assert fleet_of(2, device="cpu").server(1)[1] == os.environ


def test_haproxy_listens_where_a_server_would() -> None:
    assert fleet_of(1, host="::1").proxy()[1]["BIND"] == "[::1]:8000"


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "0.0.0.0", "api_keys": ApiKeys.of(["sk-one"], "here")}, False),
        ({"host": "0.0.0.0", "api_keys_file": Path("keys")}, False),
    ],
)
def test_it_says_when_anyone_can_use_the_model(
    settings: dict[str, Any], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    haproxy_serve._warn_if_open(ServerSettings(**settings))
    assert ("without API keys" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("servers", "visible", "settings", "said"),
    [
        (0, None, {}, "servers must be from 1 to 8, not 0"),
        (9, None, {}, "servers must be from 1 to 8, not 9"),
        (2, None, {"port": 0}, "port must be from 1 to 65533"),
        (2, "0", {"device": "cuda"}, "servers is 2, but CUDA_VISIBLE_DEVICES names 1 devices"),
    ],
)
def test_what_cannot_be_is_named(servers: int, visible: str | None, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fleet_of(servers, visible, **settings)
