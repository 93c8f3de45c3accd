"""The benchmark of several GPUs, tried on two processes of a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

SMALL = [
    "--device", "cpu", "--n-layer", "2", "--n-head", "2", "--n-embd", "16", "--fork-layers", "1", "--vocab-size", "320",
    "--block-size", "16", "--max-block-size", "32", "--sharded-sequences", "1", "--precision", "float32",
    "--no-compile",
]  # fmt: skip


@pytest.mark.slow
def test_a_sharded_model_is_saved_and_resumed_by_other_processes(tmp_path: Path) -> None:
    flags = ["--parts", "fsdp", "--sharded-steps", "4", "--resume-gpus", "2", "1", "--folder", str(tmp_path), *SMALL]
    command = [sys.executable, "-m", "benchmarks.training.parallel", *flags]
    done = subprocess.run(command, check=False, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    learned, resumed, alone = done.stdout.splitlines()[-3:]
    assert learned.startswith("1.9b on 2, 2 x 16 tokens a step: ")
    assert resumed.startswith("resumed on 2, ")
    assert resumed.endswith("at most 0 apart")
    assert alone.startswith("resumed on 1, ")
    assert float(alone.split()[-2]) < 1e-5  # of losses near 5.8: sums in another order
    assert not list(tmp_path.iterdir())
