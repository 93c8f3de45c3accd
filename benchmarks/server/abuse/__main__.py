"""Hostile clients and broken files against a server of its own, on loopback, the same every time: some minutes.

    python -m benchmarks.server.abuse [--only slow_readers dripped_bodies] [--slack 4] [--seed 0]

Each fault is one function of `http`, `load` or `files`: bounded in number and time, drawn from the
seed. One line tells how each ended; the command fails when one did not end as docs/RELIABILITY.md promises. Bounds of
time are those of a quiet machine: `--slack` multiplies them.
"""

import argparse
import asyncio
import inspect
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence

from benchmarks.header import header
from benchmarks.server.abuse import files, http, load
from benchmarks.server.abuse.target import Fault, Target, settle
from benchmarks.server.serving import resident_mib, serving

FAULTS: Mapping[str, Fault] = {fault.__name__: fault for module in (http, files, load) for fault in module.FAULTS}
LONGEST_SECONDS = 150.0
"""What any one fault may take before it counts as hung."""
SETTINGS = {
    "body-timeout-seconds": 4, "write-timeout-seconds": 5, "max-connections": 150,
}  # fmt: skip
"""Of the server: short, so that little time goes with waiting."""
WORK = {"request-timeout-seconds": 15, "drain-seconds": 60}
"""The same where the engine works meanwhile: multiplied by the slack."""


async def tried(fault: Fault, target: Target) -> tuple[bool, str]:
    """Whether the server stood it, and what was seen."""
    try:
        async with asyncio.timeout(LONGEST_SECONDS * target.slack):
            seen = await fault(target)
            if fault.__name__ not in {"torn_checkpoints", "sigterm"}:
                await settle(target)
            return True, seen
    except TimeoutError:
        return False, f"hung for {LONGEST_SECONDS * target.slack:.0f} s"
    except Exception as error:
        return False, f"{type(error).__name__}: {error}".partition("\n")[0][:300]


async def abuse(target: Target, names: Sequence[str]) -> list[str]:
    """Try each; return those that failed."""
    failed = []
    for name in names:
        began = time.monotonic()
        stood, seen = await tried(FAULTS[name], target)
        print(f"{'pass' if stood else 'FAIL'}  {time.monotonic() - began:6.1f} s  {name}: {seen}", flush=True)
        failed += [] if stood else [name]
    return failed


def main() -> int:
    """Print a line for each fault and a summary; 1 when one failed."""
    args = _arguments()
    print(header())
    work = {name: seconds * args.slack for name, seconds in WORK.items()}
    options = [f"--{name}={value}" for name, value in (SETTINGS | work).items()]
    with serving(*options) as (address, pid):
        before, began = resident_mib(pid), time.monotonic()
        target = Target(address=address, pid=pid, slack=args.slack, dice=random.Random(args.seed))
        failed = asyncio.run(abuse(target, args.only or list(FAULTS)))
        after = resident_mib(pid)
    print(f"memory MiB  before {before:.0f}, after {after:.0f}")
    number, seconds = len(args.only or FAULTS), time.monotonic() - began
    print(
        f"{number - len(failed)} of {number} faults stood in {seconds:.0f} s" + "".join(f"\nFAIL  {n}" for n in failed)
    )
    return bool(failed)


def _arguments() -> argparse.Namespace:
    faults = "\n".join(f"  {name}: {inspect.getdoc(fault)}" for name, fault in FAULTS.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog=f"faults:\n{faults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="FAULT", help="faults to try (all)")
    parser.add_argument("--slack", type=float, default=float(os.environ.get("ABUSE_SLACK", "1")),
                        help="multiplies every bound of time, for a machine that is busy (1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of what is random (0)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
