"""What operators see: readiness, metrics and their law, failure, the other routes (API.md §5 and §7)."""

import asyncio
import importlib.metadata
import logging
import threading

import httpx
import pytest
import torch
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from tests.server.harness import Json, Listening, MakeService, Running, Serve, eventually
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.server.app import create_app
from thoughtbubbles.server.observe.metrics import COUNTERS, GAUGES, LAYER_COUNTERS

PREFIX = "thoughtbubbles_"


def samples(server: Listening) -> dict[tuple[str, ...], float]:
    """Every sample of /metrics: its name without the prefix, its label values → its value."""
    response = server.client.get("/metrics")
    assert response.headers["content-type"] == CONTENT_TYPE_LATEST
    return {
        (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def assert_law(found: dict[tuple[str, ...], float]) -> None:
    finished = sum(value for name, value in found.items() if name[0] == "request_finished_total")
    running, waiting = found["num_requests_running",], found["num_requests_waiting",]
    assert found["request_accepted_total",] == finished + running + waiting


def test_the_names_of_the_contract(serve: Serve) -> None:
    with serve() as server:
        found = {name[0] for name in samples(server)}
    histograms = {
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
        "request_prompt_tokens", "request_generation_tokens", "step_batch_size", "streams_per_token",
        "request_fork_count", "fork_budget_used_ratio",
    }  # fmt: skip
    assert {f"{name}_bucket" for name in histograms} <= found
    assert {*GAUGES, *COUNTERS, "engine_up", "build_info", "model_info"} <= found
    assert {"request_finished_total", "request_accepted_total", "stream_disconnects_total"} <= found


def test_the_counts_are_those_of_the_requests(serve: Serve) -> None:
    with serve() as server:
        answers = [
            server.complete(prompt=["abc", "defgh"], n=2, max_tokens=6, fork_ratio=4),
            server.complete(prompt="ij", max_tokens=3, logit_bias={"256": 100}),
        ]
        server.error(400, n=0)
        server.error(404, model="other")
        found = samples(server)
        assert_law(found)
        assert found["request_accepted_total",] == 5
        assert found["request_finished_total", "length"] == 4
        assert found["request_finished_total", "stop"] == 1
        assert found["request_rejected_total", "integer_below_min_value"] == 1
        assert found["request_rejected_total", "model_not_found"] == 1
        usage = [answer["usage"] for answer in answers]
        assert found["generation_tokens_total",] == sum(each["completion_tokens"] for each in usage) == 25
        assert found["prompt_tokens_total",] == 2 * (3 + 5) + 2
        assert found["stream_tokens_total",] == sum(each["stream_tokens"] for each in usage)
        assert found["request_prompt_tokens_sum",] == found["prompt_tokens_total",]
        assert found["request_generation_tokens_sum",] == found["generation_tokens_total",]
        assert found["streams_per_token_sum",] == found["stream_tokens_total",]
        assert found["time_to_first_token_seconds_count",] == 5
        assert found["inter_token_latency_seconds_count",] == 20
        for name in LAYER_COUNTERS:
            assert found[name, "1"] + found[name, "2"] >= 0
        assert found["forks_total", "1"] > 0
        assert found["cache_streams",] == found["cache_bytes",] == found["cache_usage_ratio",] == 0


def test_the_law_holds_at_every_step(server: Running) -> None:
    server.engine.hold()
    posts = [
        threading.Thread(
            target=lambda number=number: httpx.post(
                f"{server.url}/v1/completions", json={"prompt": ["a"] * 5, "max_tokens": number + 1}, timeout=30
            )
        )
        for number in range(4)
    ]
    for each in posts:
        each.start()
    server.engine.wait_until_held()
    seen = set()
    while any(each.is_alive() for each in posts):
        server.engine.pass_step()
        eventually(lambda: server.engine.held or not any(each.is_alive() for each in posts))
        found = samples(server)
        assert_law(found)
        seen.add((found["num_requests_running",], found["num_requests_waiting",]))
    assert max(running for running, _ in seen) > 0
    assert max(waiting for _, waiting in seen) > 0, "20 requests and places for 8"


@pytest.mark.parametrize(
    "path",
    ["/", "/playground/main.js", "/health", "/ready", "/version", "/metrics", "/openapi.json", "/v1/models",
     "/v1/models/tiny", "/tokenizer_info", "/v1/models/other", "/nowhere"],
)  # fmt: skip
def test_head_is_get_without_the_body(server: Running, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "thoughtbubbles.server.requests")
    name = {"x-request-id": f"of{path}"}
    get, head = server.client.get(path, headers=name), server.client.head(path, headers=name)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert set(head.headers) == set(get.headers)
    assert path == "/metrics" or head.headers["content-length"] == get.headers["content-length"]
    logged: list[Json] = []

    def both_are_logged() -> bool:
        logged[:] = [each.fields for each in caplog.records if each.fields["request_id"] == name["x-request-id"]]
        return len(logged) == 2

    eventually(both_are_logged)
    assert [each["method"] for each in logged] == ["GET", "HEAD"]
    assert len({each.get("route") for each in logged}) == 1


def test_head_of_what_has_no_get(server: Running) -> None:
    head = server.client.head("/v1/completions")
    assert (head.status_code, head.headers["allow"], head.content) == (405, "POST", b"")


def test_build_and_model_are_labels(server: Running) -> None:
    found = samples(server)
    version = server.client.get("/version").json()
    assert version["version"] == importlib.metadata.version("thoughtbubbles")
    assert version["torch"] == torch.__version__
    assert version["device"] == "cpu"
    assert version["segments_backend"] in {"torch", "torch-scatter"}
    assert (version.pop("model"), version.pop("model_revision")) == ("tiny", None)
    weights = version.pop("weights_version")
    assert found["build_info", *(version[name] for name in sorted(version))] == 1
    assert any(name[0] == "model_info" and {"tiny", weights} <= {*name} for name in found)


def test_models(server: Running, model: Thoughtbubbles) -> None:
    (listed,) = server.client.get("/v1/models").json()["data"]
    assert listed == server.client.get("/v1/models/tiny").json()
    assert (listed["id"], listed["object"], listed["max_model_len"]) == ("tiny", "model", 64)
    assert listed["fork_layers"] == list(model.config.fork_layers)
    assert (listed["block_size"], listed["max_block_size"]) == (64, 128)


def test_text_to_ids_and_back(server: Running) -> None:
    """lm-eval learns the end-of-text token by tokenizing its name, and then tokenizes everything here."""
    post, text = server.client.post, "ids of é 🫧"
    told = post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert told == {"tokens": list(text.encode()), "count": 14, "max_model_len": 64}
    assert post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": text}
    info = server.client.get("/tokenizer_info").json()
    assert post("/tokenize", json={"prompt": info["eos_token"]}).json()["tokens"] == [256] == [info["eos_token_id"]]
    assert post("/detokenize", json={"tokens": [256]}).json() == {"prompt": info["eos_token"]}
    assert (info["bos_token"], info["pad_token"]) == (None, None)


@pytest.mark.parametrize(("path", "body", "code"), [("/tokenize", {}, "missing_required_parameter"),
                                                    ("/tokenize", {"prompt": 1}, "invalid_type"),
                                                    ("/detokenize", {"tokens": [257]}, "invalid_token_id"),
                                                    ("/detokenize", {"tokens": "a"}, "invalid_type")])  # fmt: skip
def test_mistakes_in_tokenizing(server: Running, path: str, body: Json, code: str) -> None:
    response = server.client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


def test_nothing_is_served_before_the_model_is_loaded(make_service: MakeService) -> None:
    """Alive at once, ready when loaded: what needs the model says 503 and when to come back."""

    async def run() -> None:
        service, _ = make_service()
        loading, load = threading.Event(), service.worker._thread._load
        service.worker._thread._load = lambda: load() if loading.wait(30) else None
        app = create_app(service)
        service.worker.start()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/health")).status_code == 200
            assert "engine_up 0.0" in (await client.get("/metrics")).text
            for request in (client.get("/ready"), client.get("/v1/models"), client.post("/v1/completions", json={})):
                response = await request
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "starting"
                assert response.headers["retry-after"] == "1"
            counted = service.metrics.rejected.labels(reason="starting")._value.get()
            assert counted == 2, "a probe of /ready is not turned away"
            loading.set()
            await service.worker.loaded.wait()
            assert (await client.get("/ready")).status_code == 200
            assert (await client.post("/v1/completions", json={"max_tokens": 1})).status_code == 200
        await service.worker.stop()

    asyncio.run(run())


def test_a_step_that_takes_too_long_is_seen(serve: Serve) -> None:
    with serve(stall_seconds=0.05) as server:
        server.engine.hold(after=1)
        with server.client.stream("POST", "/v1/completions", json={"stream": True, "max_tokens": 2}) as response:
            server.engine.wait_until_held()
            while (ready := server.client.get("/ready")).status_code == 200:
                pass
            assert ready.json()["error"]["code"] == "stalled"
            server.engine.let_go()
            assert "data: [DONE]" in list(response.iter_lines())
        assert server.client.get("/ready").status_code == 200


def test_a_failing_engine_reaches_every_client(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with serve() as server:
        server.engine.hold(after=1)
        whole: list[httpx.Response] = []
        url = f"{server.url}/v1/completions"
        asking = threading.Thread(target=lambda: whole.append(httpx.post(url, json={"prompt": ["a"] * 12}, timeout=30)))
        with server.client.stream("POST", "/v1/completions", json={"stream": True}) as response:
            server.engine.wait_until_held()
            asking.start()
            server.wait_until_asked()
            server.engine.pass_step()
            server.engine.wait_until_held()
            server.engine.fault = RuntimeError("a tensor burst")
            server.engine.let_go()
            lines = [line for line in response.iter_lines() if line]
            asking.join(30)
        assert '"code":"engine_failed"' in lines[-2]
        assert lines[-1] == "data: [DONE]"
        assert (whole[0].status_code, whole[0].json()["error"]["type"]) == (500, "server_error")
        assert whole[0].headers["x-should-retry"] == "false"
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/ready").json()["error"]["code"] == "failed"
        assert server.error(500)["code"] == "engine_failed"
        found = samples(server)
        assert_law(found)
        assert found["engine_up",] == 0
        assert found["request_finished_total", "error"] == 13
        assert "a tensor burst" in caplog.text
