"""Schemathesis sends what the served OpenAPI document allows, and what it forbids: every answer is a documented one."""

import asyncio

import httpx
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

from server.app import create_app
from server.service import Service
from server.settings import ServerSettings
from tests.server.harness import Json, Running

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


document = schemathesis.openapi.from_dict(served_document())


@document.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_documented(case: schemathesis.Case, server: Running) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS)
