"""Other people's clients, against real servers."""

import base64
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.server.conftest import (  # noqa: F401 (fixtures are found by their names here)
    make_engine,
    make_service,
    serve,
    server,
    shared_server,
)
from tests.server.harness import random_model
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

PIECES = [
    *(bytes([byte]) for byte in range(256)),
    *"é ü 🫧 👩 \u200d 東 東京 ab abc bc the \ufffd".encode().split(b" "),
    # Cut within characters, and across them.
    *("🫧".encode()[:2], "🫧".encode()[:3], "🫧".encode()[1:], "🫧".encode()[2:], "🫧".encode()[3:] + b"a"),
    *(b"b" + "é".encode()[:1], "é".encode()[1:] + b" ", "東".encode()[:2], "京".encode()[1:] + "🫧".encode()[:1]),
    *(b" the", b" a", b"  ", b"\n\n", b"\xff\xfe", b"c\x80"),
]
"""What a vocabulary may hold: every byte, characters of several, merges of words, halves and what joins them."""


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """`PIECES` and end-of-text."""
    path = tmp_path_factory.mktemp("ranks") / "pieces.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(PIECES)))
    return Tokenizer.from_file(path)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Thoughtbubbles:
    """Random; the vocabulary is padded by five."""
    return random_model(tokenizer.vocab_size + 5)


@pytest.fixture(scope="session")
def shipped_url() -> Iterator[str]:
    """Where a process of its own serves the checkpoint in the repository."""
    command = [sys.executable, "-m", "thoughtbubbles.server", "--port", "0", "--threads", "1"]
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
