"""Other people's clients, against real servers."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

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


@pytest.fixture(scope="session")
def shipped_url() -> Iterator[str]:
    """Where a process of its own serves the checkpoint in the repository."""
    command = [sys.executable, "-m", "server", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        found = (re.search(r"Listening on (\S+);", line) for line in process.stdout)
        listening = next(filter(None, found), None)
        assert listening is not None, "the server ended before it listened"
        try:
            yield listening[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
    assert process.returncode == 0
