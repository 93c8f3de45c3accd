"""Killed at any moment and resumed, a run ends as one that was left alone: the same losses and weights, bit for bit."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from thoughtbubbles.training.__main__ import main

FLAGS = [
    "--recipe", "tiny", "--vocab-size", "320", "--block-size", "16", "--max-block-size", "24", "--n-layer", "2",
    "--n-embd", "16", "--fork-layers", "1", "--device", "cpu", "--batch-size", "2", "--dropout", "0.1",
    "--fork-noise", "1", "--random-ratio", "--steps", "60", "--log-every", "1", "--save-every", "7",
    "--validate-every", "30", "--threads", "1",  # sums over another number of threads round differently
]  # fmt: skip


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", *FLAGS, "--data", str(data), "--out", str(out), *more]


def told(out: Path) -> list[str]:
    """Lines of the log that were written to their end."""
    log = out / "log.jsonl"
    return log.read_text().split("\n")[:-1] if log.exists() else []


def curve(out: Path) -> dict[int, float]:
    """The loss of every step; what was learnt twice, before the kill and after it, must agree."""
    losses: dict[int, float] = {}
    for line in map(json.loads, told(out)):
        if "loss" in line:
            assert losses.setdefault(line["step"], line["loss"]) == line["loss"], line
    return losses


def test_killed_at_a_random_step_and_resumed(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    kill_at = random.Random().randint(16, 40)  # by step 14 the state of step 7 is whole
    killed = subprocess.Popen(
        [sys.executable, "-m", "thoughtbubbles.training", *arguments(data, parts)], cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    while len(told(parts)) < kill_at:
        assert killed.poll() is None, killed.communicate()[1].decode()
        time.sleep(0.001)
    killed.kill()
    killed.communicate()
    assert max(curve(parts)) < 60
    assert main(arguments(data, parts, "--resume")) == 0
    assert main(arguments(data, whole)) == 0
    assert curve(parts) == curve(whole), f"killed after line {kill_at}"
    assert list(curve(whole)) == list(range(1, 61))
    for name, weights in load_file(whole / "checkpoint" / "model.safetensors").items():
        assert weights.equal(load_file(parts / "checkpoint" / "model.safetensors")[name]), name
