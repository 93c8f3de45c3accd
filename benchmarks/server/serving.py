"""A server of its own process, for what is measured from outside."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import httpx


@contextlib.contextmanager
def serving(
    *options: str, module: str = "thoughtbubbles.server", environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, int]]:
    """A server with these options on a free port of this machine, ready: its address and its process's id.

    The process begins a session of its own, in which whatever it starts stays.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, "--port", str(port), *options]
    with subprocess.Popen(  # noqa: S603 (our own command)
        command,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            _wait_until_ready(address := f"http://127.0.0.1:{port}")
            yield address, process.pid
        finally:
            process.terminate()


def _wait_until_ready(address: str) -> None:
    for _ in range(1800):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/ready").status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{address} was not ready within three minutes")
