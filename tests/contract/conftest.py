"""Other people's clients, against the same server as the tests of server/."""

from tests.server.conftest import (  # noqa: F401 (fixtures are found by their names here)
    checkpoint,
    make_engine,
    make_service,
    model,
    serve,
    server,
    shared_server,
    tokenizer,
)
