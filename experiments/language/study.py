"""Run the study: train and measure each run that has no result yet.

    python -m experiments.language.study [--study FILE] [--data data/language] [--out runs/study]
                                         [--results benchmarks/results/language.jsonl] [--jobs 6] [--seconds 540]

Several processes (`arm.py`) share each visible device, so that one compiles while others train. Short runs choose each
arm's learning rate on a split of their own; its reported runs start as soon as its rate is known. A finished run is a
line of the results and is not repeated. A stopped run saves its state in OUT; the same command resumes it there, or
repeats it if OUT is lost. When the seconds are over, or at SIGTERM, no run is started and running ones have 20 seconds
to save; a run that would not end in time is not started.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from experiments.language.plan import Run, Study, read_study
from experiments.language.processes import Patience, devices, work
from experiments.language.results import RESULT_FILE, append_result, read_results
from thoughtbubbles.training.data.token_file import INDEX_FILE
from thoughtbubbles.training.stopping import stop_on_signal

OUTPUT_FILE = "output.txt"
SHOWN = 5
"""Lines of a failed run's output that are printed."""


def main() -> int:
    """Run what has no result yet; return 0, or 1 if a run failed."""
    args = _arguments()
    study, places = read_study(args.study), devices()
    args.out.mkdir(parents=True, exist_ok=True)
    waiting = ready(study, args.results, args.data)
    print(f"{len(waiting)} runs can start; devices: {', '.join(places) or 'none'}", flush=True)
    environment, begin, failed = _environment(args.jobs * len(places), args.out), time.monotonic(), 0
    with stop_on_signal() as stopping:
        patience = Patience(args.seconds, stopping)
        for run, status in work(
            lambda: ready(study, args.results, args.data), partial(start, args=args, environment=environment),
            places, args.jobs, patience,
        ):  # fmt: skip
            result = args.out / run.name / RESULT_FILE
            failed += status > 0
            if status == 0 and result.exists():
                append_result(args.results, result.read_text(encoding="utf-8"))
            print(f"{time.monotonic() - begin:6.1f} s  {run.name}: {_outcome(result, status)}", flush=True)
    print(f"{len(ready(study, args.results, args.data))} runs without a result are left", flush=True)
    return min(failed, 1)


def ready(study: Study, results: Path, data: Path) -> Sequence[Run]:
    """Return the runs that have no result and whose data is present, the most important first."""
    return [run for run in study.missing(read_results(results)) if (data / run.data / INDEX_FILE).exists()]


def start(run: Run, device: str, args: argparse.Namespace, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Return the process of one run on a device; it prints into output.txt in its folder."""
    folder = args.out / run.name
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "experiments.language.arm", args.study, run.size, run.arm, run.kind, str(run.seed),
               repr(run.training.learning_rate), "--data", args.data, "--out", folder]  # fmt: skip
    with (folder / OUTPUT_FILE).open("ab") as output:
        seen = {**environment, "CUDA_VISIBLE_DEVICES": device}
        return subprocess.Popen(command, stdout=output, stderr=output, env=seen)  # noqa: S603 - our own words


def _environment(processes: int, out: Path) -> dict[str, str]:
    """Return this process's environment, with processors shared out among the runs, and one cache of compiled code."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    cache = out.resolve() / "compiled"
    return {
        "OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads,
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TRITON_CACHE_DIR": str(cache / "triton"), **os.environ,
    }  # fmt: skip


def _outcome(result: Path, status: int) -> str:
    if status == 0 and result.exists():
        found = json.loads(result.read_text(encoding="utf-8"))
        if found["loss"] is None:
            return "diverged"
        speed = f"{found['tokens_per_second'] or 0:,} tokens/s"
        return f"loss {found['loss']:.4f} after {found['seconds']:.0f} s, {speed}"
    if status <= 0:
        return "stopped before its end"
    output = result.with_name(OUTPUT_FILE)
    last = output.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:] if output.exists() else []
    return "\n  ".join([f"failed, see {output}", *last])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("experiments/language/study.toml"))
    parser.add_argument(
        "--data", type=Path, default=Path("data/language"), help="folder that data.py wrote (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder for the runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/language.jsonl"),
                        help="file with a line of JSON a run, read and appended to (%(default)s)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=6, help="processes at a time on each device (%(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which to stop (never)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
