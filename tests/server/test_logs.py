"""One line for each request, and a span for each that used the engine: numbers and reasons, no keys, no prompts."""

import asyncio
import json
import re
from dataclasses import replace

import httpx
import pytest

from tests.server.harness import Json, MakeService, Running, Serve, events, eventually
from thoughtbubbles.model import install_command
from thoughtbubbles.server.app import create_app
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.observe.logs import writing

KEY = "sk-very-secret"


def lines(capsys: pytest.CaptureFixture[str]) -> list[Json]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def ask(server: Running) -> None:
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-1"}
    response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "my diary", "max_tokens": 5}, headers=headers)
    assert response.status_code == 200
    httpx.post(f"{server.url}/v1/completions?key={KEY}", headers={"authorization": "Bearer sk-wrong"})


def test_a_line_for_each_request(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    with writing("json"), serve(api_keys=ApiKeys.of([KEY], "here")) as server:
        capsys.readouterr()
        ask(server)
    told = capsys.readouterr().err
    first, second = (line for line in map(json.loads, told.splitlines()) if line["method"] == "POST")
    assert first["request_id"] == "mine-1"
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/completions", 200)
    assert (first["prompt_tokens"], first["completion_tokens"], first["finish_reason"]) == (8, 5, "length")
    assert first["id"].startswith("cmpl-")
    times = [first[f"{phase}_seconds"] for phase in ("queue", "prefill", "decode")]
    assert 0 < sum(times) <= first["seconds"]
    assert second["status"] == 401
    assert "sk-" not in told
    assert "diary" not in told


def test_prompts_where_they_are_asked_for(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    with writing("json"), serve(log_prompts=True) as server:
        server.complete(prompt=["my diary", "é"], max_tokens=1)
    (line,) = [line for line in lines(capsys) if "prompts" in line]
    assert line["prompts"] == ["my diary", "é"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_prompt_begins_no_line_and_controls_no_terminal(
    serve: Serve, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    """JSON escapes none of these: ends of lines, C1's control characters, and those that write from right to left."""
    marks = "\x7f\x85\x9b\u2028\u2029\u202e\u2066"
    with writing(log_format), serve(log_prompts=True) as server:
        server.complete(prompt=f"é{marks}é", max_tokens=1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "prompts" in line]
    assert r"é\u007f\u0085\u009b\u2028\u2029\u202e\u2066é" in line


def test_a_client_that_leaves_has_its_line(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    with writing("json"), serve() as server:
        server.engine.hold(after=1)
        with events(server, max_tokens=40, logit_bias={"97": 100}) as told:
            next(told)
            server.engine.wait_until_held()
        eventually(lambda: server.service.metrics.disconnects._value.get() == 1)
    (line,) = [line for line in lines(capsys) if line.get("id")]
    assert (line["status"], line["finish_reason"]) == (200, "abort")


def test_a_failure_is_told_with_its_traceback(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    with writing("json"), serve() as server:
        server.engine.fault = RuntimeError("a tensor burst")
        server.error(500)
    failure, request = [line for line in lines(capsys) if line["level"] == "error" or line.get("id")]
    assert failure["message"] == "the engine failed"
    assert "RuntimeError: a tensor burst" in failure["exception"]
    assert (request["status"], request["finish_reason"]) == (500, "error")


def test_lines_for_people(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    with writing("text"), serve() as server:
        capsys.readouterr()
        server.client.get("/health")
    line = capsys.readouterr().err.splitlines()[-1]
    assert 'INFO thoughtbubbles.server.requests: request request_id="req-' in line
    assert 'route="/health" status=200' in line


def test_spans(make_service: MakeService) -> None:
    """A request is part of its client's trace, and its phases are parts of it."""
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="the otel extra is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from thoughtbubbles.server.observe.tracing import spans_of

    exporter, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def run() -> None:
        service, _ = make_service()
        app = create_app(replace(service, tracing=[spans_of(provider)]))
        service.worker.start()
        await service.worker.loaded.wait()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            body = {"prompt": "my diary", "max_tokens": 4, "ignore_eos": True}
            await client.post("/v1/completions", json=body, headers={"traceparent": parent})
            await client.get("/health")
        await service.worker.stop()

    asyncio.run(run())
    *phases, whole = exporter.get_finished_spans()
    assert [span.name for span in phases] == ["queue", "prefill", "decode"]
    assert whole.name == "POST /v1/completions"
    assert whole.context.trace_id == int(parent[3:35], 16)
    assert whole.parent.span_id == int(parent[36:52], 16)
    assert whole.attributes["completion_tokens"] == 4
    assert "diary" not in whole.to_json()
    at = whole.start_time
    for phase in phases:
        assert phase.parent.span_id == whole.context.span_id
        assert at <= phase.start_time <= phase.end_time <= whole.end_time
        at = phase.end_time


def test_traces_without_their_packages_are_refused(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ValueError, match=re.escape(install_command("otel"))):
        make_service(otel_endpoint="http://127.0.0.1:4318/v1/traces")
