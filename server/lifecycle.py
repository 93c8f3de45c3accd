"""One server process from its first line to its exit code."""

import asyncio
import signal
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from server.service import Service
from server.version import build_info
from server.worker import Worker

FLUSH_SECONDS = 2
"""What the last bytes may take after the last token."""
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


async def serve(service: Service, app: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGTERM, SIGINT or a failure, which `service.worker.failure` then holds.

    After a signal new requests are refused and those that run may finish, for `drain_seconds`.
    """
    worker = service.worker
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=FLUSH_SECONDS)
    server = _Server(config)
    stopping = _on_stop_signal()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    announcing = asyncio.create_task(_announce(service, listener))
    await _first_of(stopping.wait(), worker.failed.wait())
    announcing.cancel()
    if worker.failure is None:
        await _drain(worker, service.settings.drain_seconds)
    elif worker.loaded.is_set():
        await asyncio.sleep(FAREWELL_SECONDS)
    server.should_exit = True
    await serving


def _on_stop_signal() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _drain(worker: Worker, seconds: float) -> None:
    worker.draining = True
    with suppress(TimeoutError):
        await asyncio.wait_for(worker.idle.wait(), seconds)


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
