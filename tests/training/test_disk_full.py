"""A disk that is full ends a run with one line and status 2, and leaves what was saved before."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from thoughtbubbles.model import load_checkpoint
from thoughtbubbles.training.__main__ import main
from thoughtbubbles.training.state import read_facts

FLAGS = [
    "--recipe", "tiny", "--vocab-size", "320", "--block-size", "16", "--max-block-size", "24", "--n-layer", "2",
    "--n-embd", "16", "--fork-layers", "1", "--device", "cpu", "--batch-size", "2", "--steps", "6",
    "--warmup-steps", "1", "--log-every", "1", "--validate-every", "6",
]  # fmt: skip


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """To write a file beyond `size` bytes is an `OSError`, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [300_000, 20_000, 4_000], ids=["state", "checkpoint", "config"])
def test_a_full_disk_is_one_line_and_loses_nothing_saved(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], size: int
) -> None:
    arguments = ["train", *FLAGS, "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--steps", "3"]) == 0
    (tmp_path / "run" / "log.jsonl").write_text("")  # so that it is not what fails first
    capfd.readouterr()
    facts = tmp_path / "run" / "state" / "step-3" / "facts.json"
    facts.write_text(facts.read_text().replace('"steps": 3', '"steps": 6'))
    with files_of_at_most(size):
        assert main([*arguments, "--resume"]) == 2
    told = capfd.readouterr().err
    assert re.fullmatch(r"error: .*(too large|not be written).*\n", told), told
    assert read_facts(tmp_path / "run" / "state")["step"] == 3
    assert load_checkpoint(tmp_path / "run" / "checkpoint").provenance["step"] in {3, 6}
    assert main([*arguments, "--resume"]) == 0
    assert read_facts(tmp_path / "run" / "state")["step"] == 6
