"""A tiny model behind a real server on a free port of this machine."""

import asyncio
import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from engine import EngineConfig
from model import ChatTemplate, Thoughtbubbles, Tokenizer, save_checkpoint
from server.app import create_app
from server.lifecycle import listen
from server.loading import ServedModel
from server.service import Service
from server.settings import ServerSettings
from tests.server.harness import CONTEXT, GatedEngine, MakeEngine, MakeService, Running, Serve, eventually, random_model

CHAT_TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}a:"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """256 bytes and end-of-text."""
    path = tmp_path_factory.mktemp("ranks") / "bytes.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    return Tokenizer.from_file(path)


@pytest.fixture(scope="session")
def model() -> Thoughtbubbles:
    """Random; the vocabulary is padded by seven."""
    return random_model(264)


@pytest.fixture(scope="session")
def checkpoint(model: Thoughtbubbles, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(folder, model, tokenizer, {})
    return folder


@pytest.fixture(scope="session")
def make_engine(model: Thoughtbubbles, tokenizer: Tokenizer) -> MakeEngine:
    """What the server's loader gives it, within the limits of the settings."""

    def make(settings: ServerSettings) -> tuple[GatedEngine, ServedModel]:
        config = EngineConfig(
            max_batch_size=settings.max_batch_size,
            max_waiting_streams=settings.max_waiting_streams,
            cache_bytes=min(settings.cache_bytes, 1 << 22),
            page_size=4,
            seed=0,
        )
        served = ServedModel(
            name="tiny", config=model.config, tokenizer=tokenizer, max_model_len=settings.max_model_len or CONTEXT,
            max_waiting_streams=settings.max_waiting_streams, parameters=1, device="cpu",
            chat_template=ChatTemplate(CHAT_TEMPLATE),
        )  # fmt: skip
        return GatedEngine(model, tokenizer, config), served

    return make


@pytest.fixture(scope="session")
def make_service(make_engine: MakeEngine) -> MakeService:
    """A server that does not run yet, and its engine."""

    def make(**settings: object) -> tuple[Service, GatedEngine]:
        limits = ServerSettings(**{"max_batch_size": 8, "max_waiting_streams": 1024, **settings})
        made = make_engine(limits)
        return Service.create(limits, lambda: made), made[0]

    return make


@pytest.fixture(scope="session")
def serve(make_service: MakeService) -> Serve:
    """Run a server for the length of a `with` block."""

    @contextmanager
    def run(**settings: object) -> Iterator[Running]:
        service, engine = make_service(**settings)
        listener = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="critical", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=30) as client:
                eventually(lambda: service.metrics.meter.census is not None)
                eventually(lambda: client.get("/ready").status_code == 200)
                yield Running(url, service, engine, client)
        finally:
            server.should_exit = True
            engine.let_go()
            thread.join(30)

    return run


@pytest.fixture(scope="module")
def shared_server(serve: Serve) -> Iterator[Running]:
    with serve() as running:
        yield running


@pytest.fixture
def server(shared_server: Running) -> Iterator[Running]:
    """A server shared by the tests of a file; each leaves the cache empty and the engine free."""
    yield shared_server
    shared_server.engine.let_go()
    assert shared_server.service.worker.failure is None
    eventually(lambda: not shared_server.engine.has_work)
    assert shared_server.engine.stats().cache_streams == 0
