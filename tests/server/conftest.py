"""A tiny model behind a real server on a free port of this machine."""

import argparse
import base64
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import httpx
import pytest

from tests.server.harness import (
    CONTEXT,
    Client,
    GatedEngine,
    MakeEngine,
    MakeService,
    RunBeside,
    Running,
    Serve,
    eventually,
    listening,
    random_model,
)  # fmt: skip
from tests.server.ordered import load_ordered, order
from thoughtbubbles.engine import EngineConfig
from thoughtbubbles.model import ChatTemplate, Thoughtbubbles, Tokenizer, save_checkpoint
from thoughtbubbles.server.__main__ import add_arguments, run
from thoughtbubbles.server.bridge.weights import weights_version
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings

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
            max_client_share=settings.max_client_share,
            cache_bytes=min(settings.cache_bytes, 1 << 22),
            page_size=4,
            seed=0,
        )
        served = ServedModel(
            name="tiny", config=model.config, weights_version=weights_version(model.state_dict()),
            tokenizer=tokenizer, max_model_len=settings.max_model_len or CONTEXT,
            max_waiting_streams=settings.max_waiting_streams, max_client_streams=config.max_client_streams,
            max_choices=settings.max_choices, parameters=1, device="cpu", chat_template=ChatTemplate(CHAT_TEMPLATE),
        )  # fmt: skip
        administered = settings.admin_keys.digests or settings.admin_keys_file  # its model's weights may be replaced
        return GatedEngine(deepcopy(model) if administered else model, tokenizer, config), served

    return make


@pytest.fixture(scope="session")
def make_service(make_engine: MakeEngine) -> MakeService:
    """A server that does not run yet, and its engine."""

    def make(**settings: object) -> tuple[Service, GatedEngine]:
        limits = ServerSettings(**{"max_batch_size": 8, "max_waiting_streams": 1024, "max_client_share": 1, **settings})
        made = make_engine(limits)
        return Service.create(limits, lambda: made), made[0]

    return make


@pytest.fixture(scope="session")
def serve(make_service: MakeService) -> Serve:
    """Run a server for the length of a `with` block."""

    @contextmanager
    def run(**settings: object) -> Iterator[Running]:
        service, engine = make_service(**settings)
        with listening(service) as found:
            try:
                yield Running(found.url, service, found.client, engine)
            finally:
                engine.let_go()

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
    eventually(lambda: not shared_server.engine.has_work and shared_server.engine.stats().cache_streams == 0)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that an engine of `load_ordered` obeys."""
    path = tmp_path_factory.mktemp("orders") / "orders"
    order(path, "")
    return path


@pytest.fixture
def run_ordered(checkpoint: Path, orders: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunBeside]:
    """Run the command on this thread, which gets signals, and a client of its service on another.

    Its engine obeys `orders`. Returns the exit code and the client's result; a client that fails ends the server.
    """
    others, create, created = active_children(), Service.create, Future[Service]()

    def create_once(settings: ServerSettings) -> Service:
        created.set_result(create(settings))
        return created.result()

    def beside(client: Callable[[Service], object]) -> object:
        service = created.result(30)
        try:
            return client(service)
        except BaseException as error:
            service.worker._thread._loop.call_soon_threadsafe(service.worker.on_failure, error)
            raise

    def both(client: Callable[[Service], object], *given: str) -> tuple[int, object]:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        with ThreadPoolExecutor() as pool:
            result = pool.submit(beside, client)
            args = ["--checkpoint", str(checkpoint), "--port", str(port), "--threads", "1", *given]
            code = run(parser.parse_args(args))
            return code, result.result(30)

    monkeypatch.setattr("thoughtbubbles.server.service.load_model", partial(load_ordered, orders))
    monkeypatch.setattr(Service, "create", create_once)
    yield both
    order(orders, "")
    assert set(active_children()) == set(others)


@pytest.fixture
def run_beside(make_engine: MakeEngine, port: int, monkeypatch: pytest.MonkeyPatch) -> RunBeside:
    """Run the command on this thread, which gets signals, and a client on another; return exit code and result."""

    def both(client: Client, *given: str) -> tuple[int, object]:
        original = Service.create
        services: Future[tuple[Service, GatedEngine]] = Future()

        def create(settings: ServerSettings) -> Service:
            made = make_engine(settings)
            services.set_result((original(settings, lambda: made), made[0]))
            return services.result()[0]

        def beside() -> object:
            service, engine = services.result(30)
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=30) as http:
                eventually(lambda: http.get("/ready").status_code == 200)
                try:
                    return client(Running(url, service, http, engine))
                finally:
                    engine.let_go()

        monkeypatch.setattr(Service, "create", create)
        with ThreadPoolExecutor() as pool:
            told = pool.submit(beside)
            parser = argparse.ArgumentParser()
            add_arguments(parser)
            code = run(parser.parse_args(["--port", str(port), *given]))
            return code, told.result(30)

    return both
