"""Replicas under Ray Serve on this machine, as `python -m deploy.ray_serve` starts them: one is killed, all drain."""

import asyncio
import importlib.util
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator

import pytest
from openai import APIError

from tests.deploy import fleets
from tests.deploy.fleets import BATCH, CLIENTS, LONG, MODEL, START_SECONDS, STORY, check_leaving, eventually, outcomes

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: pip install '.[ray]'", allow_module_level=True)

pytestmark = pytest.mark.slow
ENVIRONMENT = {
    "RAY_ADDRESS": "local",
    "RAY_AUTH_MODE": "disabled",  # else Ray leaves a token in the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "THOUGHTBUBBLES_MAX_BATCH_SIZE": str(BATCH),
    "THOUGHTBUBBLES_DRAIN_SECONDS": "60",
}


class Fleet(fleets.Fleet):
    """One cluster of one machine, whose servers are replicas."""

    def samples(self, name: str) -> dict[str, float]:
        """A metric of each replica that lives, its labels added up."""
        page = self.http.get("/metrics")
        found = re.findall(rf'^thoughtbubbles_{name}{{.*replica="(\w+)"}} (\S+)$', page.text, re.MULTILINE)
        counts: Counter[str] = Counter()
        for replica, value in found if page.status_code == 200 else ():
            counts[replica] += float(value)
        return dict(counts)


@pytest.fixture(scope="module")
def fleet() -> Iterator[fleets.Fleet]:
    """Begins with one replica, and may have two."""
    options = ["--max-replicas", "2", "--upscale-delay-s", "1", "--max-queued-requests", str(CLIENTS)]
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,  # short: Ray's sockets are in it
        fleets.running(
            Fleet,
            "deploy.ray_serve",
            *options,
            port=fleets.free_port(),
            environment=ENVIRONMENT | {"RAY_TMPDIR": folder},
        ) as started,
    ):
        yield started


def test_an_answer_is_the_same_whole_and_streamed(fleet: Fleet) -> None:
    client = fleet.openai
    asked = {"model": MODEL, "prompt": STORY, "max_tokens": 16, "seed": 1}
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    assert client.completions.create(**asked).choices[0].text == streamed


def test_a_refusal_and_its_request_id_come_through(fleet: Fleet) -> None:
    response = fleet.http.post("/v1/completions", json={"prompt": 1.5}, headers={"x-request-id": "mine"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_a_body_that_is_too_long_is_refused_before_a_replica_has_it(fleet: Fleet) -> None:
    response = fleet.http.post("/v1/completions", content=b" " * ((8 << 20) + 1))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_sequences_that_wait_in_an_engine_bring_a_second_replica(fleet: Fleet) -> None:
    """One client request, of which Serve's own policy sees one: the others wait in the engine."""
    assert len(fleet.samples("engine_up")) == 1
    stream = fleet.openai.completions.create(model=MODEL, prompt=STORY, n=4 * BATCH, stream=True, **LONG)
    try:
        eventually(lambda: len(fleet.samples("engine_up")) == 2, START_SECONDS)
    finally:
        stream.close()
    eventually(fleet.idle)


def test_prompts_that_begin_alike_go_to_the_same_replica(fleet: Fleet) -> None:
    client = fleet.openai
    for beginning in "One. ", "Two. ", "Three. ":
        before = fleet.samples("request_accepted_total")
        for end in range(3):
            client.completions.create(model=MODEL, prompt=f"{beginning * 9}{STORY * 4}{end}", max_tokens=1)
        after = fleet.samples("request_accepted_total")
        assert sorted(after[replica] - before[replica] for replica in after) == [0, 3]
    assert sum(fleet.samples("prefix_cache_hits_total").values()) > 6 * len(STORY.split())


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_request(fleet: Fleet, stream: bool) -> None:
    check_leaving(fleet, stream=stream)


def test_whichever_replica_has_it_a_completion_can_be_cancelled(fleet: Fleet) -> None:
    for _ in range(4):
        stream = fleet.openai.completions.create(model=MODEL, prompt=STORY, stream=True, **LONG)
        name = next(iter(stream)).id
        assert fleet.http.post(f"/v1/completions/{name}/cancel").json() == {"id": name, "cancelled": True}
        with pytest.raises(APIError, match="cancelled"):
            list(stream)
    assert fleet.http.post("/v1/completions/nobody/cancel").status_code == 404


def test_what_no_place_is_kept_for_is_refused(fleet: Fleet) -> None:
    """As many as run may wait: of three times as many, some have to come again."""
    told = asyncio.run(outcomes(fleet, 3 * CLIENTS, lambda: None))
    assert told.total() == 3 * CLIENTS
    assert set(told) == {"done length", "status 429, again after 1 s"}, told


def test_every_request_has_an_outcome_when_a_replica_is_killed(fleet: Fleet) -> None:
    victims = fleet.processes("^ray::ServeReplica:thoughtbubbles:Replica")
    assert len(victims) == 2
    told = asyncio.run(outcomes(fleet, CLIENTS, lambda: os.kill(victims[0], signal.SIGKILL)))
    assert told.total() == CLIENTS
    assert set(told) == {"done length", "event draining", "status 503, again after 1 s"}, told
    eventually(lambda: len(fleet.samples("engine_up")) == 2, START_SECONDS)


def test_the_router_does_without_its_memory_of_prompts(fleet: Fleet) -> None:
    (memory,) = fleet.processes("^ray::PrefixTreeActor")
    os.kill(memory, signal.SIGKILL)
    for number in range(4):
        assert fleet.openai.completions.create(model=MODEL, prompt=f"{number}", max_tokens=2).usage


def test_sigterm_lets_what_runs_finish(fleet: Fleet) -> None:
    told = asyncio.run(outcomes(fleet, CLIENTS, fleet.process.terminate))
    assert told == {"done length": CLIENTS}
    assert fleet.process.wait(60) == 0
