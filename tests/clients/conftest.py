"""The Python client, against servers of three kinds: made of a function, ours, and one that speaks OpenAI's part."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks.server.serving import serving
from tests.clients.harness import CLIENTS, URL, MakeClient
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
from thoughtbubbles.model import shipped_checkpoint

TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@pytest.fixture(params=CLIENTS)
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """`Client`, then `AsyncClient`; closed when the test is over."""
    with ExitStack() as stack:
        yield lambda url=URL, **settings: stack.enter_context(CLIENTS[request.param](url, **settings))


@pytest.fixture(scope="session")
def talking_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a process of its own serves the shipped checkpoint, which has been given a chat template."""
    folder = tmp_path_factory.mktemp("talking") / shipped_checkpoint().name
    shutil.copytree(shipped_checkpoint(), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    keys = folder.with_name("admin-keys")
    keys.write_text("sk-admin", encoding="utf-8")
    with serving("--checkpoint", str(folder), "--threads", "1", "--admin-keys-file", str(keys)) as (url, _):
        yield url
