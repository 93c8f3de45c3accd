"""First come, first served; and no client has more than its share of the queue waiting."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from tests.server.harness import Running, Serve
from tests.server.test_operation import assert_law, samples
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.request_queue import RequestQueue
from thoughtbubbles.server.keys import ApiKeys

SMALL = {"max_batch_size": 1, "max_waiting_streams": 80, "max_client_share": 0.5}
KEYS = {"api_keys": ApiKeys.of(["sk-one", "sk-two"], "here")}
BODY = {"prompt": "abcd", "max_tokens": 4, "ignore_eos": True}
"""May come to 16 streams, of which a client may have 40 waiting."""


def key(name: str, scheme: str = "Bearer ") -> Mapping[str, str]:
    return {"authorization": f"{scheme}sk-{name}"}


def address(host: str) -> Mapping[str, str]:
    """The client's address as a proxy on this machine forwards it."""
    return {"x-forwarded-for": host}


class Crowd:
    """Clients of a server with a blocked engine, each queued before the next one sends."""

    def __init__(self, server: Running, pool: ThreadPoolExecutor) -> None:
        self.server = server
        self.answers: list[Future[httpx.Response]] = []
        self._pool = pool

    def ask(self, headers: Mapping[str, str], **body: object) -> Future[httpx.Response]:
        url = f"{self.server.url}/v1/completions"
        post = partial(httpx.post, url, json={**BODY, **body}, headers=headers, timeout=30)
        self.answers.append(self._pool.submit(post))
        self.server.wait_until_asked()
        self.server.engine.pass_step()
        self.server.engine.wait_until_held()
        return self.answers[-1]


@pytest.mark.parametrize(
    ("settings", "one", "again", "two"),
    [
        (KEYS, key("one"), key("one", "bearer   "), key("two")),
        ({}, address("10.0.0.1"), address("10.0.0.1"), address("10.0.0.2")),
        ({}, {}, key("one"), address("10.0.0.2")),
    ],
    ids=["keys", "addresses", "no keys are needed"],
)
def test_a_client_beyond_its_share_is_refused_and_others_are_served(
    serve: Serve, settings: dict[str, object], one: Mapping[str, str], again: Mapping[str, str], two: Mapping[str, str]
) -> None:
    with serve(**SMALL, **settings) as server, ThreadPoolExecutor() as pool:
        crowd = Crowd(server, pool)
        server.engine.hold()
        first = pool.submit(httpx.post, f"{server.url}/v1/completions", json={**BODY, "max_tokens": 40}, headers=one)
        server.engine.wait_until_held()
        taken = [crowd.ask(one), crowd.ask(again)]
        refused = crowd.ask(again).result()
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "client_queue_full")
        assert "may need 48 streams when complete, and max_client_share allows 40" in error["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        taken.append(crowd.ask(two))
        assert_law(samples(server))
        server.engine.let_go()
        assert [each.result().status_code for each in (first, *taken)] == [200] * 4
        assert samples(server)["request_rejected_total", "client_queue_full"] == 1


def test_first_come_first_served(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent of the client, the size of the request, and earlier requests."""
    started: list[str] = []
    popleft = RequestQueue.popleft

    def noted(waiting: RequestQueue) -> Request:
        request = popleft(waiting)
        started.append(request.id)
        return request

    monkeypatch.setattr(RequestQueue, "popleft", noted)
    with serve(**{**SMALL, "max_waiting_streams": 400}) as server, ThreadPoolExecutor() as pool:
        crowd = Crowd(server, pool)
        server.engine.hold()
        first = pool.submit(httpx.post, f"{server.url}/v1/completions", json={**BODY, "max_tokens": 40})
        server.engine.wait_until_held()
        for host, tokens in [("10.0.0.1", 9), ("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.3", 9), ("10.0.0.2", 1)]:
            crowd.ask(address(host), max_tokens=tokens)
        server.engine.let_go()
        assert first.result().status_code == 200
        assert [each.result().status_code for each in crowd.answers] == [200] * 5
        assert started[1:] == [f"{each.result().json()['id']}/0" for each in crowd.answers]


def test_choices_beyond_the_share_are_their_own_mistake(serve: Serve) -> None:
    """They would be refused whenever they came: to come back later is no use."""
    with serve(**SMALL) as server:
        error = server.error(400, **BODY, n=3)
        assert (error["param"], error["code"]) == ("prompt", "array_above_max_length")
        assert error["message"] == (
            "Invalid 'prompt': its choices may need 48 streams with their completions, but this server's queue has 40"
            " for one client (max_client_share)."
        )
        assert len(server.complete(**BODY, n=2)["choices"]) == 2


def test_one_choice_is_never_too_large_for_a_share(serve: Serve) -> None:
    with serve(**{**SMALL, "max_client_share": 0.01}) as server:
        assert server.complete(**BODY)["choices"]
