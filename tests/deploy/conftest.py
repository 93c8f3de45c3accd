"""The small server of tests/server, for what needs no checkpoint."""

from tests.server.conftest import make_engine, make_service, model, serve, tokenizer  # noqa: F401 (fixtures are found by name)
