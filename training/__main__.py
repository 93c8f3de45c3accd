"""`python -m thoughtbubbles.training prepare|train|evaluate|analyse`: the floor's commands alone."""

import argparse
import sys

from thoughtbubbles.model.memory import lack_of_memory
from thoughtbubbles.training import analyse, evaluate, train
from thoughtbubbles.training.data import prepare

COMMANDS = {"prepare": prepare, "train": train, "evaluate": evaluate, "analyse": analyse}


def main(argv: list[str] | None = None) -> int:
    """Run a command; 2 and the reason on standard error when what was asked cannot be done."""
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
        if (told := lack_of_memory(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
