"""A checkout serves without being installed: nothing reads the metadata of an installation."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.training.harness import MODEL
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, save_checkpoint

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
NOT_INSTALLED = """
import importlib.metadata

from_name = importlib.metadata.Distribution.from_name

@classmethod
def uninstalled(cls, name):
    if name == "thoughtbubbles":
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)

importlib.metadata.Distribution.from_name = uninstalled
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a Python in which this project is not installed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOT_INSTALLED)
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {
        "PYTHONPATH": str(tmp_path / "site")
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)} | {b"th": 256}, "ranks")
    model = Thoughtbubbles(replace(MODEL, vocab_size=tokenizer.vocab_size))
    save_checkpoint(tmp_path / "checkpoint", model, tokenizer, {})
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("command", "inside"),
    [
        (["-m", "thoughtbubbles.server"], True),
        (["thoughtbubbles", "serve"], True),
        ([str(ROOT / "thoughtbubbles"), "serve"], False),
    ],
)
def test_a_plain_checkout_serves(
    command: Sequence[str], inside: bool, environment: dict[str, str], checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [sys.executable, *command, *arguments], cwd=ROOT if inside else tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        told = ""
        while "Listening" not in told:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told += line
        [address] = re.findall(r"Listening on (\S+);", told)
        assert httpx.get(f"{address}/version").json()["version"] == VERSION
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_plain_checkout_tells_its_version(environment: dict[str, str]) -> None:
    command = [sys.executable, "thoughtbubbles", "--version"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"thoughtbubbles {VERSION}\n"
