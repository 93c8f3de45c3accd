"""The command-line argument for a checkpoint, positional or an option, the same in every command."""

import argparse

CHECKPOINT_HELP = "checkpoint folder, or a hub id: org/name[@revision]"


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT and --checkpoint CHECKPOINT to `parser`; `checkpoint` is None without, and both are refused."""
    text = f"{CHECKPOINT_HELP} (the one in checkpoints/)"
    # SUPPRESS: an absent argument must not overwrite the option.
    either = parser.add_mutually_exclusive_group()
    either.add_argument("checkpoint", nargs="?", default=argparse.SUPPRESS, help=text)
    either.add_argument("--checkpoint", help="the same as an option")
