"""Progress moves in a terminal, and writes nothing into a file or a pipe."""

import os
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.training.harness import HELD_OUT, TEXTS, VOCAB, write_json_lines

ROOT = Path(__file__).parents[2]
TRAIN = [
    "train", "--recipe", "tiny", "--vocab-size", "320", "--block-size", "16", "--max-block-size", "24", "--n-layer",
    "2", "--n-embd", "16", "--fork-layers", "1", "--device", "cpu", "--batch-size", "2", "--steps", "3",
    "--warmup-steps", "1", "--log-every", "1",
]  # fmt: skip


@pytest.fixture(params=["prepare", "train"])
def command(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Sequence[str]:
    texts = [write_json_lines(tmp_path / f"{n}.jsonl", t) for n, t in (("train", TEXTS), ("val", HELD_OUT))]
    given = {
        "prepare": ["prepare", "--train", str(texts[0]), "--val", str(texts[1]), "--vocab-size", str(VOCAB)],
        "train": [*TRAIN, "--data", str(data)],
    }[request.param]
    return [sys.executable, "-m", "thoughtbubbles.training", *given, "--out", str(tmp_path / "out")]


def test_progress_is_quiet_in_a_pipe(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert 1 <= done.stdout.count("\n") <= 2, "what came of it is told"


def test_progress_moves_in_a_terminal(command: Sequence[str]) -> None:
    ours, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    told = b""
    while part := _read(ours):
        told += part
    os.close(ours)
    assert process.wait() == 0
    assert told.count(b"\r") > 2


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's word for a terminal that nobody has open any more
        return b""
