"""Attack a server on loopback with hostile clients and broken files: does it behave as docs/RELIABILITY.md promises?

    python -m benchmarks.server.abuse [--only slow_readers dripped_bodies] [--slack 4] [--seed 0]

It takes some minutes and repeats exactly: each fault is one function of `http.py`, `load.py` or `files.py`, bounded in
number and time, with random values from the seed. Each prints one line; the command fails if one fails. Time limits are
for a quiet machine: `--slack` multiplies them.
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
from benchmarks.server.abuse.target import Fault, Target, wait_until_idle
from benchmarks.server.serving import resident_mib, serving

FAULTS: Mapping[str, Fault] = {fault.__name__: fault for module in (http, files, load) for fault in module.FAULTS}
LONGEST_SECONDS = 150.0
"""A fault that takes longer counts as hung."""
SETTINGS = {
    "body-timeout-seconds": 4, "write-timeout-seconds": 5, "max-connections": 150,
}  # fmt: skip
"""Settings of the server: short, so that the run does not wait long."""
WORK = {"request-timeout-seconds": 15, "drain-seconds": 60}
"""Settings that depend on the speed of the engine: multiplied by the slack."""


async def attempt(fault: Fault, target: Target) -> tuple[bool, str]:
    """Return whether the server passed, and what was observed."""
    try:
        async with asyncio.timeout(LONGEST_SECONDS * target.slack):
            observed = await fault(target)
            if fault.__name__ not in {"torn_checkpoints", "sigterm"}:
                await wait_until_idle(target)
            return True, observed
    except TimeoutError:
        return False, f"hung for {LONGEST_SECONDS * target.slack:.0f} s"
    except Exception as error:
        return False, f"{type(error).__name__}: {error}".partition("\n")[0][:300]


async def abuse(target: Target, names: Sequence[str]) -> list[str]:
    """Attempt each fault and print its line; return the names of those that failed."""
    failed = []
    for name in names:
        began = time.monotonic()
        passed, observed = await attempt(FAULTS[name], target)
        print(f"{'pass' if passed else 'FAIL'}  {time.monotonic() - began:6.1f} s  {name}: {observed}", flush=True)
        failed += [] if passed else [name]
    return failed


def main() -> int:
    """Print a line for each fault and a summary; return 1 if one failed."""
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
        f"{number - len(failed)} of {number} faults passed in {seconds:.0f} s" + "".join(f"\nFAIL  {n}" for n in failed)
    )
    return bool(failed)


def _arguments() -> argparse.Namespace:
    faults = "\n".join(f"  {name}: {inspect.getdoc(fault)}" for name, fault in FAULTS.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog=f"faults:\n{faults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="FAULT", help="faults to attempt (all)")
    parser.add_argument("--slack", type=float, default=float(os.environ.get("ABUSE_SLACK", "1")),
                        help="factor of every time limit, for a busy machine (1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all random values (0)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
