"""Faults of files: checkpoints that are cut, garbled or incomplete."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.server.abuse.target import Fault, Target
from thoughtbubbles.model import shipped_checkpoint

WEIGHTS, CONFIG, RANKS = "model.safetensors", "config.json", "tokenizer.tiktoken"
REFUSED = 2


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    return cut


def _put(name: str, content: bytes) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return put


def _begin(name: str, content: bytes) -> Callable[[Path], None]:
    def begin(folder: Path) -> None:
        file = folder / name
        file.write_bytes(content + file.read_bytes()[len(content) :])

    return begin


def _nan(folder: Path) -> None:
    """Make the last weight of the file NaN, whatever its precision."""
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-4] + b"\xff\x7f\xff\x7f")


MUTATIONS: Mapping[str, Callable[[Path], None]] = {
    "half the weights": _cut(WEIGHTS, 0.5),
    "no byte of the weights": _cut(WEIGHTS, 0),
    "a header without end": _begin(WEIGHTS, b"\xff" * 8),
    "a header that is not JSON": _begin(WEIGHTS, (1000).to_bytes(8, "little") + b"\x00" * 1000),
    "a weight that is NaN": _nan,
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "half the config": _cut(CONFIG, 0.5),
    "a config that is a list": _put(CONFIG, b"[]"),
    "a config that is deep": _put(CONFIG, b"[" * 100_000),
    "no tokenizer": lambda folder: (folder / RANKS).unlink(),
    "half the tokenizer": _cut(RANKS, 0.5),
    "a file of random bytes as tokenizer": _put(RANKS, b"\x00\xff" * 500),
}


async def torn_checkpoints(target: Target) -> str:
    """Checkpoints that are cut, garbled or incomplete: one line that names the folder, and exit code 2."""
    wrong = []
    for name, mutate in MUTATIONS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(shutil.copytree(shipped_checkpoint(), Path(scratch) / "torn"))
            mutate(folder)
            code, output = await _served(folder, 60 * target.slack)
        if code != REFUSED or str(folder) not in output or output.count("\n") != 1:
            wrong.append(f"{name} ended with {code}: {output.strip()[-120:]!r}")
    assert not wrong, "; ".join(wrong)
    return f"{len(MUTATIONS)} of {len(MUTATIONS)} were refused in one line"


async def _served(folder: Path, seconds: float) -> tuple[int | None, str]:
    """Return exit code and output of a server of this checkpoint; code None if it serves, or prints nothing in time."""
    command = [sys.executable, "-m", "thoughtbubbles.server", "--checkpoint", str(folder), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(seconds):
            if line := await process.stdout.readline():  # that it listens
                return None, line.decode()
            return await process.wait(), (await process.stderr.read()).decode()
    except TimeoutError:
        return None, "nothing"
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


FAULTS: Sequence[Fault] = (torn_checkpoints,)
