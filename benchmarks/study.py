"""The paper's claims at a small size: trains every arm of a TOML file under each of its seeds, and measures it.

    python -m benchmarks.study [--study benchmarks/study.toml] [--data data/corpus] [--out runs/study] [--jobs 6]
                               [--seconds 540]

Several processes (`benchmarks.study_arm`) share the device. What is done is a line of OUT/results.jsonl, which
`benchmarks.study_report` reads, and is not done again. When the seconds are over nothing new is begun, and what runs is
asked to save and end; the same command goes on with it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.study_plan import Run, read_study
from benchmarks.study_results import RESULT_FILE, missing, read_results

TICK = 0.2
"""Seconds between two looks at what runs."""


def main() -> int:
    """Train what has no result yet; 0, or 1 when some run failed."""
    args = _arguments()
    study, path = read_study(args.study), args.out / "results.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    waiting = missing(study, read_results(path))
    print(f"{len(study.runs) - len(waiting)} of {len(study.runs)} runs have a result", flush=True)
    begin, failed = time.monotonic(), 0
    processes = work(waiting, lambda run: start(run, args), args.jobs, lambda: time.monotonic() - begin > args.seconds)
    for run, status in processes:
        result = args.out / run.name / RESULT_FILE
        failed += status > 0
        if status == 0 and result.exists():
            with path.open("a", encoding="utf-8") as file:
                file.write(result.read_text(encoding="utf-8"))
        print(f"{time.monotonic() - begin:6.1f} s  {run.name}: {_outcome(result, status)}", flush=True)
    return min(failed, 1)


def work(
    runs: Sequence[Run], start: Callable[[Run], "subprocess.Popen[bytes]"], jobs: int, over: Callable[[], bool]
) -> Iterator[tuple[Run, int]]:
    """Start a process for each run, `jobs` at a time, and tell its exit status when it ends.

    Once `over()` no further one is started, and those that run get SIGTERM.
    """
    waiting, running = list(runs), dict[Run, "subprocess.Popen[bytes]"]()
    while running or (waiting and not over()):
        while waiting and len(running) < jobs and not over():
            run = waiting.pop(0)
            running[run] = start(run)
        if over():
            for process in running.values():
                process.terminate()
        for run in [run for run, process in running.items() if process.poll() is not None]:
            yield run, running.pop(run).returncode
        time.sleep(TICK)


def start(run: Run, args: argparse.Namespace) -> "subprocess.Popen[bytes]":
    """The process of one run, which prints into output.txt in its folder; processors are shared out, to compile too."""
    folder, threads = args.out / run.name, str(max(1, (os.cpu_count() or 1) // args.jobs))
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.study_arm", args.study, run.arm, str(run.seed),
               "--data", args.data, "--out", folder]  # fmt: skip
    environment = {"OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads, **os.environ}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)  # noqa: S603 - our own words


def _outcome(result: Path, status: int) -> str:
    if status == 0 and result.exists():
        told = json.loads(result.read_text(encoding="utf-8"))
        return f"loss {told['loss']:.4f} after {told['seconds']:.0f} s, {told['tokens_per_second']:,} tokens/s"
    return f"failed, see {result.with_name('output.txt')}" if status > 0 else "stopped before its end"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("benchmarks/study.toml"))
    parser.add_argument("--data", type=Path, default=Path("data/corpus"), help="a folder that `prepare` made")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder for the runs and results.jsonl")
    parser.add_argument("--jobs", type=int, default=6, help="processes at a time (%(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which to stop (never)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
