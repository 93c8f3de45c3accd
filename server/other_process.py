"""What another HTTP process of a server runs."""

import asyncio
import os
import socket
import sys

from uvicorn.loops.auto import auto_loop_factory

from thoughtbubbles.server.app import create_app
from thoughtbubbles.server.bridge.process import exit_with_parent
from thoughtbubbles.server.lifecycle import serve_beside
from thoughtbubbles.server.observe.logs import writing
from thoughtbubbles.server.processes.link import Link
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings


def run_other(settings: ServerSettings, listener: socket.socket, link: Link) -> None:
    """Serve in this process until the first says so or ends; exit with 1 if the engine fails."""
    exit_with_parent()
    with writing(settings.log_format), listener, asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        service = Service.create_other(settings, link)
        runner.run(serve_beside(service, create_app(service), listener, link.first))
    code = 0 if service.worker.failure is None else 1
    if service.worker.stuck:
        os._exit(code)  # an orderly exit would wait for the thread
    sys.exit(code)
