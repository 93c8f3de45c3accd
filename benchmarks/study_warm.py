"""One step of a run at one of the ratios that its batches draw, so that the compiler's cache has its graph.

    python -m benchmarks.study_warm STUDY ARM SEED NUMBER [--device cuda]

A run that draws its ratio compiles a graph for each, one after the other. `benchmarks.study` has other processes do so
meanwhile: torch keeps on disk what they compiled, for every process. NUMBER is that of a batch with the ratio.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import torch

from benchmarks.study_plan import Run, read_study
from model import ModelConfig, Thoughtbubbles
from training.config import TrainConfig
from training.distributed import Ranks
from training.schedule import ratio
from training.step import TrainStep

LOWER_PRIORITY = 10


def main() -> None:
    """Learn once, from nothing in particular."""
    os.nice(LOWER_PRIORITY)
    args = _arguments()
    run = read_study(args.study).find(args.arm, args.seed)
    ranks = Ranks(device=torch.device(args.device))
    learn = TrainStep(Thoughtbubbles(run.model, dropout=run.training.dropout).to(ranks.device), run.training, ranks)
    learn(args.number, [torch.zeros(run.training.batch_size, run.model.block_size + 1, dtype=torch.long)])


def batches_to_compile(runs: Sequence[Run]) -> list[tuple[Run, int]]:
    """For each ratio that is drawn in `runs`, once: a run and the number of its first batch with it.

    Not those that another run has always, and compiles itself.
    """
    known = {(_shape(run), run.model.max_block_size) for run in runs if not run.training.random_ratio}
    found = []
    for run in runs:
        if run.training.random_ratio and run.training.compile:
            for number in range(run.training.steps * run.training.accumulation):
                drawn = ratio(number, run.model, run.training)
                assert drawn is not None
                graph = (_shape(run), int(drawn * run.model.block_size + 0.5))
                if graph not in known:
                    known.add(graph)
                    found.append((run, number))
    return found


@contextmanager
def compiled_ahead(
    runs: Sequence[Run], study: Path, places: Sequence[str], base: Mapping[str, str], output: Path
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that compile what `runs` will draw, on `places` in turn; what is not done when this closes is ended."""
    processes = []
    with output.open("ab") as file:
        for (run, number), device in zip(batches_to_compile(runs), cycle(places), strict=False):
            command = [sys.executable, "-m", "benchmarks.study_warm", str(study), run.arm, str(run.seed), str(number)]
            seen = {**base, "CUDA_VISIBLE_DEVICES": device}
            processes.append(subprocess.Popen(command, stdout=file, stderr=file, env=seen))  # noqa: S603 - our words
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _shape(run: Run) -> tuple[ModelConfig, TrainConfig]:
    """All of a run's graph but the ratio."""
    return replace(run.model, max_block_size=run.model.block_size), replace(run.training, seed=0, random_ratio=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("arm")
    parser.add_argument("seed", type=int)
    parser.add_argument("number", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
