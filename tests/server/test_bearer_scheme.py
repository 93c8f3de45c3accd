"""GET /openapi.json declares the bearer scheme where keys are configured, so that generated clients send one."""

import asyncio

import httpx

from tests.server.harness import Json
from thoughtbubbles.server.app import KEYLESS, create_app
from thoughtbubbles.server.keys import NO_KEYS, ApiKeys
from thoughtbubbles.server.routes.admin import PATHS
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings


def document(keys: ApiKeys, admin_keys: ApiKeys = NO_KEYS) -> Json:
    settings = ServerSettings(api_keys=keys, admin_keys=admin_keys)

    async def fetch() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(Service.create(settings)))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get("/openapi.json")

    return asyncio.run(fetch()).json()


def security(document: Json) -> dict[str, list[Json] | None]:
    operations = ((path, each) for path, methods in document["paths"].items() for each in methods.values())
    return {path: operation.get("security") for path, operation in operations}


def test_with_keys_every_route_that_needs_one_says_so() -> None:
    declared = document(ApiKeys.of(["sk-one"], "here"))
    (name, scheme), *others = declared["components"]["securitySchemes"].items()
    assert not others
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    required = security(declared)
    assert required == {path: None if path in KEYLESS | PATHS else [{name: []}] for path in required}
    assert required["/v1/completions"]


def test_admin_keys_are_a_scheme_of_their_own() -> None:
    declared = document(NO_KEYS, admin_keys=ApiKeys.of(["sk-admin"], "here"))
    (name, scheme), *others = declared["components"]["securitySchemes"].items()
    assert not others
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    required = security(declared)
    assert required == {path: [{name: []}] if path in PATHS else None for path in required}
    both = document(ApiKeys.of(["sk-one"], "here"), admin_keys=ApiKeys.of(["sk-admin"], "here"))
    assert security(both)["/admin/load"] != security(both)["/v1/completions"]


def test_without_keys_no_scheme_is_declared() -> None:
    declared = document(NO_KEYS)
    assert "securitySchemes" not in declared["components"]
    assert set(security(declared).values()) == {None}
