"""The paper's claims at a small size: trains every arm of a TOML file under each of its seeds, and measures it.

    python -m benchmarks.study [--study benchmarks/study.toml] [--data data/corpus] [--out runs/study]
                               [--results OUT/results.jsonl] [--jobs 8] [--seconds 540]

Several processes (`benchmarks.study_arm`) share each of the devices that are visible. What is done is a line of the
results, which `benchmarks.study_report` reads, and is not done again. When the seconds are over, or at SIGTERM, nothing
new is begun, and what runs is asked to save and end, for which it has 20 seconds; the same command goes on with it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.study_plan import Run, read_study
from benchmarks.study_processes import Patience, devices, work
from benchmarks.study_results import RESULT_FILE, missing, read_results
from benchmarks.study_warm import compiled_ahead
from training.stopping import stop_on_signal

OUTPUT_FILE = "output.txt"
TOLD = 5
"""Lines of a failed run's output that are shown."""


def main() -> int:
    """Train what has no result yet; 0, or 1 when some run failed."""
    args = _arguments()
    study, path, places = read_study(args.study), args.results or args.out / "results.jsonl", devices()
    args.out.mkdir(parents=True, exist_ok=True)
    waiting = missing(study, read_results(path))
    done = len(study.runs) - len(waiting)
    print(f"{done} of {len(study.runs)} runs have a result; devices: {', '.join(places) or 'none'}", flush=True)
    environment, begin, failed = _environment(args.jobs * len(places)), time.monotonic(), 0
    start_one = partial(start, args=args, environment=environment)
    ahead = compiled_ahead(waiting, args.study, places, environment, args.out / "compiled-ahead.txt")
    with stop_on_signal() as stopping, ahead:
        for run, status in work(waiting, start_one, places, args.jobs, Patience(args.seconds, stopping)):
            result = args.out / run.name / RESULT_FILE
            failed += status > 0
            if status == 0 and result.exists():
                with path.open("a", encoding="utf-8") as file:
                    file.write(result.read_text(encoding="utf-8"))
            print(f"{time.monotonic() - begin:6.1f} s  {run.name}: {_outcome(result, status)}", flush=True)
    return min(failed, 1)


def start(run: Run, device: str, args: argparse.Namespace, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """The process of one run on a device; it prints into output.txt in its folder."""
    folder = args.out / run.name
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.study_arm", args.study, run.arm, str(run.seed),
               "--data", args.data, "--out", folder]  # fmt: skip
    with (folder / OUTPUT_FILE).open("ab") as output:
        seen = {**environment, "CUDA_VISIBLE_DEVICES": device}
        return subprocess.Popen(command, stdout=output, stderr=output, env=seen)  # noqa: S603 - our own words


def _environment(processes: int) -> dict[str, str]:
    """What this process has, the processors shared out among so many where it does not say how, to compile too."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return {"OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads, **os.environ}


def _outcome(result: Path, status: int) -> str:
    if status == 0 and result.exists():
        told = json.loads(result.read_text(encoding="utf-8"))
        return f"loss {told['loss']:.4f} after {told['seconds']:.0f} s, {told['tokens_per_second']:,} tokens/s"
    if status <= 0:
        return "stopped before its end"
    output = result.with_name(OUTPUT_FILE)
    last = output.read_text(encoding="utf-8", errors="replace").splitlines()[-TOLD:] if output.exists() else []
    return "\n  ".join([f"failed, see {output}", *last])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("benchmarks/study.toml"))
    parser.add_argument("--data", type=Path, default=Path("data/corpus"), help="a folder that `prepare` made")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder for the runs")
    parser.add_argument("--results", type=Path, help="file for a line of JSON a run (OUT/results.jsonl)")
    parser.add_argument("--jobs", type=int, default=8, help="processes at a time on each device (%(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which to stop (never)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
