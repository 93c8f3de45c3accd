"""`python -m thoughtbubbles.training prepare|train|evaluate|analyse`: the commands that need no engine or server."""

import argparse
import sys

from thoughtbubbles.model.memory import lack_of_memory
from thoughtbubbles.training import analyse, evaluate, train
from thoughtbubbles.training.data import prepare

COMMANDS = {"prepare": prepare, "train": train, "evaluate": evaluate, "analyse": analyse}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; on an expected error, 2 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m thoughtbubbles.training")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(subparsers.add_parser(name, help=(module.__doc__ or "").split("\n", maxsplit=1)[0]))
    args = parser.parse_args(argv)
    try:
        status: int = COMMANDS[args.command].run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if (message := lack_of_memory(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
