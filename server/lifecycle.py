"""One server process: listening, signals, draining, the watchdog."""

import asyncio
import ipaddress
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from thoughtbubbles.server.bridge.worker import Worker
from thoughtbubbles.server.http.connections import EXTRA_CONNECTIONS, ConnectionLimits, connections_within
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.processes.alone import RunOther
from thoughtbubbles.server.processes.other import Other
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.version import build_info

logger = logging.getLogger(__name__)

OTHER_FILES = 128
"""Open files beside connections: libraries, pipes, the checkpoint."""
FLUSH_SECONDS = 2
"""Time limit for sending the last bytes after the last token."""
IDLE_SECONDS = 75
"""How long a connection may be idle. Longer than clients keep one (OpenAI's: 5 s): else a client might send a request
at the moment the server closes the connection."""
WATCH_SECONDS = 0.25
"""How often the watchdog checks the current step."""
SWITCH_SECONDS = 0.0005
"""The interpreter's switch interval. Where the engine's thread steps, its Python between two steps takes less, so that
the event loop does not interrupt it, but writes while the next step is computed, without the lock. Where the engine has
a process of its own, the thread that sends it commands waits so long for a busy event loop; Python's default of 5 ms is
some steps."""
FAILURE_NOTICE_SECONDS = 1.0
"""How long a failed server still answers its clients and /ready with the failure."""


class _Server(uvicorn.Server):
    """uvicorn's server, but `serve` handles the signals: uvicorn's handler of SIGTERM stops listening at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say when that is done."""
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


def warn_if_open(address: str, keys: ApiKeys) -> None:
    """Log a warning if other machines can reach `address`, an IP address, and no request needs a key."""
    if not keys.digests and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        logger.warning(
            "listening on %s without API keys: anyone who can connect can use the model; set api_keys_file or host",
            address,
        )


def allow_connections(number: int) -> None:
    """Raise the limit of open files for `number` connections; log a warning if the hard limit is too low."""
    needed = number + EXTRA_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and hard < needed:
        logger.warning(
            "max_connections is %d, which needs %d open files, but this process may have %d: set it lower, or raise"
            " the limit (ulimit -Hn)", number, needed, hard,
        )  # fmt: skip
    if soft != unlimited and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == unlimited else min(needed, hard), hard))


async def serve(service: Service, app: ASGIApp, listener: socket.socket, run_other: RunOther) -> None:
    """Serve until SIGTERM, SIGINT or a failure, which is then in `service.worker.failure`.

    After a signal the server refuses new requests, and running ones may finish for `drain_seconds` or until a second
    signal; the rest end with an error. If the settings want several HTTP processes, the others run `run_other`.
    """
    allow_connections(service.settings.max_connections)
    warn_if_open(listener.getsockname()[0], service.keys)
    stop, stop_at_once = _stop_signals()
    with _switch_interval(SWITCH_SECONDS):
        async with service.processes.running(run_other, service.settings_of_others, listener):
            await _serve(service, app, listener, stop, stop_at_once)


async def serve_beside(service: Service, app: ASGIApp, listener: socket.socket, first: socket.socket) -> None:
    """Serve as another process of a server, until its first process says so, or until a failure.

    `first` is this process's end of the channel to it.
    """
    processes = service.processes
    assert isinstance(processes, Other), "of Service.create_other"
    allow_connections(service.settings.max_connections)
    with _switch_interval(SWITCH_SECONDS):
        async with processes.connected(first):
            await _serve(service, app, listener, processes.stop, processes.stop_at_once)


@contextmanager
def _switch_interval(seconds: float) -> Iterator[None]:
    """Set the interpreter's switch interval inside the block."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


async def _serve(
    service: Service, app: ASGIApp, listener: socket.socket, stop: asyncio.Event, stop_at_once: asyncio.Event
) -> None:
    worker, settings, processes = service.worker, service.settings, service.processes
    server = _Server(uvicorn_config(app, service))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    background = [
        asyncio.create_task(_announce(service, listener, server)),
        asyncio.create_task(watch(worker, settings.watchdog_seconds)),
    ]
    await _first_of(stop, worker.failed, processes.broken)
    if worker.failure is None:
        worker.draining = True
        processes.drain(settings.drain_seconds)
        await _first_of(worker.idle, stop_at_once, worker.failed, seconds=settings.drain_seconds)
        worker.end_all()
    if worker.failure is not None and worker.loaded.is_set():
        await asyncio.sleep(FAILURE_NOTICE_SECONDS)
    await processes.end(stop_at_once)
    for task in background:
        task.cancel()
    server.should_exit = True
    await serving


def uvicorn_config(app: ASGIApp, service: Service) -> uvicorn.Config:
    """Return uvicorn's configuration for `app`, the application of `service`."""
    settings, metrics = service.settings, service.metrics
    limits = ConnectionLimits(
        read_seconds=settings.body_timeout_seconds,
        write_seconds=settings.write_timeout_seconds,
        most=settings.max_connections,
        open=metrics.connections,
        closed=metrics.connections_closed,
    )
    return uvicorn.Config(
        app,
        http=connections_within(limits),
        ws="none",  # these limits do not hold for WebSockets
        log_config=None,  # server.observe.logs writes uvicorn's messages
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )


def _stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return events that the first and the second SIGTERM or SIGINT set."""
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return first, second


async def _first_of(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Wait for one of these events, for at most `seconds`."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def watch(worker: Worker, seconds: float) -> None:
    """Abandon the engine if a step takes longer than `seconds`: its clients would wait forever.

    This counts checks that found the same step, not the clock's seconds: while a server is suspended, as by Ctrl-Z or
    `docker pause`, its steps are, too.
    """
    step, watched = None, 0.0
    while watched <= seconds:
        await asyncio.sleep(WATCH_SECONDS)
        before, step = step, worker.step_began
        watched = 0.0 if step is None or step != before else watched + WATCH_SECONDS
    worker.abandon()


async def _announce(service: Service, listener: socket.socket, server: _Server) -> None:
    """Print the address, the model and a command to try, once the model is loaded and all processes listen."""
    await service.worker.loaded.wait()
    await server.listening.wait()
    if await service.processes.announces():
        _print_address(service, listener)


def _print_address(service: Service, listener: socket.socket) -> None:
    model = service.worker.model
    build = build_info(model.device, model.executor)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    name = model.name if model.revision is None else f"{model.name} at {model.revision}"
    print(
        f"thoughtbubbles {build['version']} serves {name} ({model.parameters:,} parameters) on {model.device},"
        f" executor {model.executor},"
        f" torch {build['torch']}, segments by {build['segments_backend']}\n"
        f"Listening on {address}; try\n\n"
        f"  curl -N {address}/v1/completions -H 'Content-Type: application/json' \\\n"
        """    -d '{"prompt": "The river", "max_tokens": 64, "stream": true}'\n""",
        flush=True,
    )
