"""A server in a process of its own: start it, and read its metrics and its memory."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

import httpx

MOST_CHARACTERS = 4000
"""Of a log that are shown."""


@contextlib.contextmanager
def serving(
    *options: str, module: str = "thoughtbubbles.server", environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, int]]:
    """Start a server with these options on a free port; give its address and process id once it is ready.

    The process is the leader of a new session, which its own processes stay in. Raise `RuntimeError` with what it wrote
    to its log if it ends before it is ready, `TimeoutError` if it is not ready within three minutes.
    """
    port = free_port()
    command = [sys.executable, "-m", module, "--port", str(port), *options]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(  # noqa: S603 (our own command)
            command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            _wait_until_ready(address := f"http://127.0.0.1:{port}", process, log)
            yield address, process.pid
        finally:
            process.terminate()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: TextIO) -> None:
    for _ in range(1800):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/ready").status_code == httpx.codes.OK:
                return
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}:\n{_end_of(log)}")
        time.sleep(0.1)
    raise TimeoutError(f"{address} was not ready within three minutes:\n{_end_of(log)}")


def _end_of(log: TextIO) -> str:
    log.seek(0)
    return log.read()[-MOST_CHARACTERS:]


def read_metrics(address: str) -> dict[str, float]:
    """Return the server's metrics by name and labels, without the prefix of the names."""
    return parse_metrics(httpx.get(f"{address}/metrics").text)


def parse_metrics(text: str) -> dict[str, float]:
    """Return the metrics in the text of /metrics, as `read_metrics` does."""
    found = re.findall(r"^thoughtbubbles_([a-z_]+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def resident_mib(pid: int) -> float:
    """Return the resident memory in MiB of a process and of the processes it has started; 0 if it has exited."""
    try:
        own = int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except (OSError, IndexError):
        return 0.0
    return own + sum(resident_mib(int(child)) for child in children)
