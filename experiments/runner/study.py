"""Train and measure what a study has no result of yet, as processes that share the visible devices.

    python -m experiments.NAME.study [--study FILE] [--data data/NAME] [--out runs/NAME]
                                     [--results benchmarks/results/NAME.jsonl] [--jobs 6] [--seconds 540]

Several processes (`arm.py`) share each visible device, so that one compiles while others train. Learning
rates are chosen first, by short runs on a split of their own; the runs that are reported follow as soon as their arm's
rate is known. A finished run is a line of the results and is not run again; a run that is stopped saves itself in OUT,
and the same command resumes it there, or repeats it where OUT is lost. When the seconds are over, or at SIGTERM, no run
is started and those that run have 20 seconds to save. Within the seconds as many runs end as can: those begun in OUT
come first, as many run side by side as should end in time, and one that keeps the others from it is stopped. A run that
alone takes longer is resumed by the next command.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.header import machine
from experiments.runner.forecast import Forecast, Progresses, saved_step
from experiments.runner.plan import Result, Run, Study, read_study
from experiments.runner.processes import Patience, Work, devices
from experiments.runner.results import RESULT_FILE, append_result, read_results
from thoughtbubbles.model import lock_file
from thoughtbubbles.training.data.token_file import INDEX_FILE
from thoughtbubbles.training.stopping import stop_on_signal

OUTPUT_FILE = "output.txt"
LOCK_FILE = ".study.lock"
SHOWN = 5
"""Lines of a failed run's output that are printed."""


def run_study(name: str, evaluation: type[Any]) -> int:
    """Run what has no result yet of `experiments.{name}`; return 0, or 1 if a run failed.

    Raises `ValueError` if the study's file is wrong, or another study is running in the folder for the runs, or with
    the same results.
    """
    args = _arguments(name)
    study = read_study(args.study, evaluation)
    args.out.mkdir(parents=True, exist_ok=True)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with (args.out / LOCK_FILE).open("ab") as runs, args.results.open("ab") as results:
        if not lock_file(runs):
            raise ValueError(f"out: another study is running in {args.out}; wait for it, or choose another folder")
        if not lock_file(results):
            raise ValueError(f"results: another study writes {args.results}; wait for it, or choose another file")
        return _run(name, study, args)


def _run(name: str, study: Study, args: argparse.Namespace) -> int:
    places = devices()
    collect(study, args.out, args.results)
    waiting = ready(study, args)
    print(f"{len(waiting)} runs can start; devices: {', '.join(places) or 'none'}", flush=True)
    environment, begin, failed = _environment(args.jobs * len(places), args.out), time.monotonic(), 0
    progress = Progresses(args.out)

    def start_run(run: Run, device: str) -> "subprocess.Popen[bytes]":
        progress.begun(run)
        return start(run, device, name, args=args, environment=environment)

    with stop_on_signal() as stopping:
        patience = Patience(args.seconds, stopping)
        forecast = Forecast(progress, [line for line in read_results(args.results) if line.get("machine") == machine()])
        work = Work(lambda: ready(study, args), start_run, places, args.jobs, patience=patience, forecast=forecast)
        for run, status in work():
            result = record(run, args.out, args.results)
            collect(study, args.out, args.results)
            failed += status > 0 and result is None
            outcome = _outcome(result, status, args.out / run.name / OUTPUT_FILE)
            print(f"{time.monotonic() - begin:6.1f} s  {run.name}: {outcome}", flush=True)
    print(f"{len(ready(study, args))} runs without a result are left", flush=True)
    return min(failed, 1)


def ready(study: Study, args: argparse.Namespace) -> Sequence[Run]:
    """Return the runs that have no result and whose data is present: those begun, then the most important first."""
    missing = study.missing(read_results(args.results))
    present = [run for run in missing if (args.data / run.data / INDEX_FILE).exists()]
    return sorted(present, key=lambda run: saved_step(args.out / run.name) == 0)


def collect(study: Study, out: Path, results: Path) -> None:
    """Record every result in `out` that a former command left there, of runs that have none in `results`."""
    found = True
    while found:  # a result may decide an arm's rate, and so make further runs
        missing = study.missing(read_results(results))
        found = any(record(run, out, results) is not None for run in missing)


def record(run: Run, out: Path, results: Path) -> Result | None:
    """Return the result in the folder of `run`, appended to `results` unless it is there; None without one of these
    settings.
    """
    path = out / run.name / RESULT_FILE
    if not path.exists():
        return None
    line = path.read_text(encoding="utf-8")
    result: Result = json.loads(line)
    if not run.is_of(result):
        return None
    if not any(map(run.is_of, read_results(results))):  # of runs that end together, one may have collected the others
        append_result(results, line)
    return result


def start(
    run: Run, device: str, name: str, args: argparse.Namespace, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Return the process of one run on a device; it prints into output.txt in its folder."""
    folder = args.out / run.name
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"experiments.{name}.arm", args.study, run.size, run.arm, run.kind, str(run.seed),
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


def _outcome(result: Result | None, status: int, output: Path) -> str:
    if result is not None:
        if result["loss"] is None:
            return "diverged"
        speed = f"{result['tokens_per_second'] or 0:,} tokens/s"
        return f"loss {result['loss']:.4f} after {result['seconds']:.0f} s, {speed}"
    if status <= 0:
        return "stopped before its end"
    last = output.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:] if output.exists() else []
    return "\n  ".join([f"failed, see {output}", *last])


def _arguments(name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("experiments") / name / "study.toml")
    parser.add_argument("--data", type=Path, default=Path("data") / name, help="folders that data.py made")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder for the runs")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results") / f"{name}.jsonl",
                        help="file with a line of JSON a run, read and appended to (%(default)s)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=6, help="processes at a time on each device (%(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which to stop (never)")
    return parser.parse_args()
