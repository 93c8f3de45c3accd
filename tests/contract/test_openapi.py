"""Schemathesis sends what the served OpenAPI document allows, and what it forbids: every answer is a documented one."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.server.harness import Json, Running, Serve
from thoughtbubbles.server.app import KEYLESS, create_app
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


def served_document() -> Json:
    """The document of a server that does not run: pytest needs its routes before any fixture."""

    async def fetch() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(Service.create(ServerSettings())))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get("/openapi.json")

    return asyncio.run(fetch()).json()


@pytest.fixture(scope="module")
def shared_server(serve: Serve) -> Iterator[Running]:
    """Its context is short: answers to conversations fill it, and what they say is nothing to this test."""
    with serve(max_model_len=24, max_waiting_streams=100) as running:
        yield running


document = schemathesis.openapi.from_dict(served_document())


def examples(count: int) -> settings:
    """The same requests every time, so many for each operation."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@document.parametrize()
@examples(8)
def test_every_answer_is_documented(case: schemathesis.Case, server: Running) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS)


@pytest.mark.slow
@document.parametrize()
@examples(60)
def test_every_answer_to_more_is_documented(case: schemathesis.Case, server: Running) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS)


def test_where_a_key_is_needed_is_documented(serve: Serve) -> None:
    keys = ApiKeys.of(["sk-right"], "here")
    with serve(api_keys=keys, admin_keys=keys) as server:
        for path, operations in served_document()["paths"].items():
            for method, operation in operations.items():
                refused = server.client.request(method, path).status_code == 401
                assert refused == (path not in KEYLESS) == ("401" in operation["responses"]), path
