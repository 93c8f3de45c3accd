"""One server process from its first line to its exit code."""

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
from thoughtbubbles.server.http.connections import SPARE_CONNECTIONS, ConnectionLimits, connections_within
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.version import build_info

logger = logging.getLogger(__name__)

OTHER_FILES = 128
"""Open files that are no connections: libraries, pipes, the checkpoint."""
FLUSH_SECONDS = 2
"""What the last bytes may take after the last token."""
IDLE_SECONDS = 75
"""How long a connection may stay unused. Longer than clients keep one (OpenAI's: 5 s), else both ends may choose the
same moment, one to close it and the other to ask again."""
WATCH_SECONDS = 0.25
"""How often the watchdog looks."""
TURN_SECONDS = 0.00005
"""How long a thread of this process keeps Python while another waits for it. The engine's thread gives way in each of
its calls to torch, or in each read of a pipe: at Python's own 5 ms it would wait for the loop, each time, longer than
a device for a step."""
FAREWELL_SECONDS = 1.0
"""How long a failed server still says so, to its clients and on /ready."""


class _Server(uvicorn.Server):
    """uvicorn, which leaves signals to `serve`: its own answer to SIGTERM is to close the door at once."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. `OSError` saying so when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port") from error
    # Connections inherit it. asyncio would set it on them, but not where the socket does not name its protocol:
    # the second packet of each answer then waits 40 ms for the client to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def warn_if_open(address: str, keys: ApiKeys) -> None:
    """Log a warning if other machines can reach `address`, an IP address, and no request needs a key."""
    if not keys.digests and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        logger.warning(
            "listening on %s without API keys: whoever reaches it can use the model; set api_keys_file or host", address
        )


def allow_connections(number: int) -> None:
    """Let the process have enough open files for so many connections; log a warning where it may not."""
    needed = number + SPARE_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and hard < needed:
        logger.warning(
            "max_connections is %d, which needs %d open files, but this process may have %d: set it lower, or raise"
            " the limit (ulimit -Hn)", number, needed, hard,
        )  # fmt: skip
    if soft != unlimited and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == unlimited else min(needed, hard), hard))


async def serve(service: Service, app: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGTERM, SIGINT or a failure, which `service.worker.failure` then holds.

    After a signal new requests are refused and those that run may finish, for `drain_seconds` or until a second one;
    what runs then is ended with an error.
    """
    allow_connections(service.settings.max_connections)
    warn_if_open(listener.getsockname()[0], service.keys)
    with _short_turns():
        await _serve(service, app, listener)


@contextmanager
def _short_turns() -> Iterator[None]:
    """Inside the block, Python's threads take turns of `TURN_SECONDS`."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


async def _serve(service: Service, app: ASGIApp, listener: socket.socket) -> None:
    worker, settings = service.worker, service.settings
    server = _Server(uvicorn_config(app, service))
    stopping, hurrying = _stop_signals()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    beside = [
        asyncio.create_task(_announce(service, listener)),
        asyncio.create_task(_watch(worker, settings.watchdog_seconds)),
    ]
    await _first_of(stopping, worker.failed)
    if worker.failure is None:
        worker.draining = True
        await _first_of(worker.idle, hurrying, worker.failed, seconds=settings.drain_seconds)
        worker.cut_off()
    if worker.failure is not None and worker.loaded.is_set():
        await asyncio.sleep(FAREWELL_SECONDS)
    for task in beside:
        task.cancel()
    server.should_exit = True
    await serving


def uvicorn_config(app: ASGIApp, service: Service) -> uvicorn.Config:
    """How uvicorn serves `app`, the application of `service`."""
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
        ws="none",  # a connection that became a WebSocket would have none of these limits
        log_config=None,  # server.observe.logs writes what uvicorn says
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )


def _stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first and by the second of the signals that stop a server."""
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return first, second


async def _first_of(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Wait for one of these, or so long."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _watch(worker: Worker, seconds: float) -> None:
    """Give the engine up when a step takes longer than this: nothing else can end it, and its clients would wait."""
    while worker.step_seconds <= seconds:  # noqa: ASYNC110 (a thread that hangs sets no event)
        await asyncio.sleep(WATCH_SECONDS)
    worker.abandon()


async def _announce(service: Service, listener: socket.socket) -> None:
    """Say where the server is, what it serves, and how to try it, once it can be tried."""
    await service.worker.loaded.wait()
    model = service.worker.model
    build = build_info(model.device)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(
        f"thoughtbubbles {build['version']} serves {model.name} ({model.parameters:,} parameters) on {model.device},"
        f" torch {build['torch']}, segments by {build['segments_backend']}\n"
        f"Listening on {address}; try\n\n"
        f"  curl -N {address}/v1/completions -H 'Content-Type: application/json' \\\n"
        """    -d '{"prompt": "The river", "max_tokens": 64, "stream": true}'\n""",
        flush=True,
    )
